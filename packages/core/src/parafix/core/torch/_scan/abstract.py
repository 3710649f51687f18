import abc

from .._custom_types import Inexact


class AbstractScan(abc.ABC):
    """Solves the affine recurrence `x_t = a_t x_{t-1} + b_t`.

    A scan is numerics only: [`parafix.core.torch.affine_scan`][] checks the arguments
    and owns the derivatives, so `solve` need not be differentiable. It is called on
    plain tensors, outside autograd, autocast and `torch.func`.
    """

    @abc.abstractmethod
    def solve(self, a: Inexact, b: Inexact, init: Inexact, reverse: bool) -> Inexact:
        """Returns `x` of the shape of `b`, in memory of its own.

        **Arguments:**

        - `a`: diagonal `(T, *batch, n)` or dense `(T, *batch, n, n)`. Axes of size 1,
            time included, broadcast against `b`.
        - `b`: `(T, *batch, n)` with `T >= 1`, of the dtype of `a`.
        - `init`: `(*batch, n)`, the state before the first step.
        - `reverse`: if true, `x_t = a_t x_{t+1} + b_t`, with `init` after the end.

        None of them may be written to, and none need be contiguous.
        """

    @abc.abstractmethod
    def reasons_against(self, a: Inexact, b: Inexact) -> list[str]:
        """Why this scan cannot solve the recurrence; empty if it can.

        Only shapes, dtypes and devices may be looked at. A scan that was asked for by
        name raises with these reasons; the automatic choice goes on to the next.
        """
