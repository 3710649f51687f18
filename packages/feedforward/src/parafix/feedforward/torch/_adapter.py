import abc
import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor


class AbstractFlowAdapter(abc.ABC):
    """How [`parafix.feedforward.torch.invert`][] inverts the transforms of a library.

    Those of nflows, normflows and zuko are there. Another one is added by
    [`parafix.feedforward.torch.register_flow_adapter`][].

    !!! example

        ```python
        class Mine(AbstractFlowAdapter):
            def knows(self, transform):
                return isinstance(transform, MyAutoregressiveFlow)

            def inverse(self, transform, y, context, solve):
                shift = lambda x: transform.network(x, context)
                x = solve(lambda x: y - shift(x), torch.zeros_like(y))
                return x, torch.zeros(len(y))
        ```
    """

    @abc.abstractmethod
    def knows(self, transform: Any) -> bool:
        """Whether `transform` is one that `inverse` can take."""

    @abc.abstractmethod
    def inverse(
        self, transform: Any, y: Tensor, context: Any, solve: Callable[..., Tensor]
    ) -> tuple[Tensor, Tensor]:
        """What the transform's own inverse returns, without going entry by entry.

        **Arguments:**

        - `transform`, `y`, `context`: as the caller gave them.
        - `solve`: `solve(f, z0, *, order=None, check=False, further=1)` returns the
            solution `(B, N)` of `z = f(z)`, with its derivatives, and adds to what
            the caller gets to know. `f` maps `(B, N)` to `(B, N)`, and its entry
            `order[i]` depends on entries `order[:i]` alone, where `order`, `(N,)`, is
            `0, 1, ...` if it is `None`. `check` is whether to look if that is so, and
            `further` how often the network is called besides.

        **Returns:**

        `x` and `log_abs_det`, of one number for each sample.
        """


# Library -> the module that knows its transforms. It is imported once the library is.
_LIBRARIES: Final = {
    "nflows": "._flows._nflows",
    "normflows": "._flows._normflows",
    "zuko": "._flows._zuko",
}
_registered: list[AbstractFlowAdapter] = []


def register_flow_adapter(adapter: AbstractFlowAdapter) -> Callable[[], None]:
    """Teaches [`parafix.feedforward.torch.invert`][] the transforms of a library.

    **Arguments:**

    - `adapter`: an [`parafix.feedforward.torch.AbstractFlowAdapter`][]. It is asked
        before those that were there.

    **Returns:**

    A function that takes it away again.

    **Raises:**

    `TypeError` if it is no adapter.
    """
    if not isinstance(adapter, AbstractFlowAdapter):
        raise TypeError(f"`adapter` must be an AbstractFlowAdapter, got {adapter!r}.")
    _registered.insert(0, adapter)
    return functools.partial(_unregister, adapter)


def _unregister(adapter):
    if adapter in _registered:
        _registered.remove(adapter)


def adapter_of(transform: Any) -> AbstractFlowAdapter:
    """The adapter that knows a transform; `TypeError` if there is none."""
    for adapter in _registered:
        if adapter.knows(transform):
            return adapter
    for library, module in _LIBRARIES.items():
        # Whoever has one of its transforms has imported the library.
        if library in sys.modules:
            adapter = importlib.import_module(module, __package__).ADAPTER
            if adapter.knows(transform):
                return adapter
    kind = type(transform)
    known = ", ".join(f"`{library}`" for library in _LIBRARIES)
    raise TypeError(
        f"`invert` does not know transforms of type `{kind.__module__}."
        f"{kind.__qualname__}`. It knows those of {known}, and of adapters given to "
        "`register_flow_adapter`. If the inverse of yours goes entry by entry, call "
        "`solve_causal(f, torch.zeros_like(y))` with the map `f` of one such pass: "
        "the network at `z`, and `y` through the inverse that it gives."
    )


def is_a(x: Any, module: str, name: str) -> bool:
    """Whether `x` is of a class that is known by its name alone."""
    return class_of(x, module, name) is not None


def class_of(x: Any, module: str, name: str) -> type | None:
    """That class."""
    for cls in type(x).__mro__:
        if (cls.__module__, cls.__name__) == (module, name):
            return cls
    return None
