"""What kernels need beside a device."""

import functools
import importlib.util
import os


@functools.cache
def installed(module: str) -> bool:
    """Whether a library is there, found without importing it."""
    return importlib.util.find_spec(module) is not None


def interpreted() -> bool:
    """Whether Triton runs kernels in Python on a CPU (`TRITON_INTERPRET=1`).

    Triton decides when a kernel's source is imported, so the variable has to be set
    before the first use and stay.
    """
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on")


# Module -> distribution.
_DISTRIBUTIONS = {"triton": "triton", "jax_triton": "jax-triton"}


def reasons_against_libraries(*modules: str) -> list[str]:
    """A sentence for each of the libraries that is not installed, with the remedy."""
    return [
        f"{_DISTRIBUTIONS[module]} is not installed: "
        f"pip install {_DISTRIBUTIONS[module]}"
        for module in modules
        if not installed(module)
    ]
