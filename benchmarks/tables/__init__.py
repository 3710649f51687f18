"""The tables by name. A table is imported, and with it a framework, when it is run."""

import importlib

from ..table import Table


# Name -> what `--list` says. The module of a table holds it as `TABLE`.
SUMMARIES = {
    "deer-scan": "parafix.deer.jax.scan beside lax.scan and a textbook DEER",
    "auto-grid": 'solver="auto" on a grid of sizes, beside all that may beat it',
    "loop-adjoint": "derivatives of a loop: its own, and those of the chain",
    "diffeqsolve": "parafix.deer.jax.diffeqsolve beside diffrax.diffeqsolve",
    "memory": "temporary memory by windows, layers and chunks, beside lax.scan",
    "rootfinding": "parafix.core.jax.fixed_point beside jaxopt and Optimistix",
    "torch-rootfinding": "parafix.core.torch.fixed_point beside torchdeq",
    "adjoint-memory": "temporary memory of gradients through a fixed point",
    "import": "what `import parafix.core` costs, and what it loads",
    "diagonal-scan": "the kernel of the diagonal scan in PyTorch, on a GPU",
    "diagonal-scan-jax": "the same in JAX",
    "windows": "time and sweeps of DEER by the length of its windows",
    "torch-gru": "parafix.deer.torch.GRU beside torch.nn.GRU",
    "flows": "inverses of autoregressive flows beside nflows, normflows and zuko",
    "flows-jax": "the same in JAX, beside flowjax",
}

# `import` is no name for a module.
_MODULES = {"import": "import_time"}


def load(name: str) -> Table:
    """The table of a name of `SUMMARIES`."""
    module = _MODULES.get(name, name.replace("-", "_"))
    return importlib.import_module(f"{__name__}.{module}").TABLE
