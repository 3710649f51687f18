import abc

from .._custom_types import Inexact
from .abstract import AbstractScan


class AbstractFusedScan(AbstractScan):
    """A scan that has a backward pass of its own.

    [`parafix.core.torch.affine_scan`][] takes it where it differentiates once. Where a
    derivative is differentiated in turn, it is made of scans, and `solve` serves.
    """

    @abc.abstractmethod
    def vjp(
        self,
        a: Inexact,
        x: Inexact,
        init: Inexact,
        g: Inexact,
        reverse: bool,
        with_a: bool,
    ) -> tuple[Inexact | None, Inexact, Inexact]:
        """Pulls cotangents of the states back to the arguments.

        With `l_t = g_t + conj(a_{t+1}) l_{t+1}`: the cotangent of `b_t` is `l_t`, that
        of `a_t` is `l_t conj(x_{t-1})`, that of `init` is `conj(a_1) l_1`.

        **Arguments:**

        - `a`, `init`, `reverse`: what `solve` was given. `solve` made `x` of them.
        - `g`: the cotangents of `x`, of its shape and dtype.
        - `with_a`: whether those of `a` are wanted.

        None of them may be written to, and none need be contiguous.

        **Returns:**

        The cotangents of `a` (or `None`), of `b` and of `init`, each of the shape of
        its argument, in memory of their own.
        """
