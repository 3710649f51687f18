import abc

from .._custom_types import Inexact
from .abstract import AbstractScan


class AbstractFusedScan(AbstractScan):
    """A scan that has a backward pass of its own, and a platform that it is made for.

    [`parafix.core.jax.affine_scan`][] takes it where it differentiates once. Where a
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

        With `l_t = g_t + a_{t+1} l_{t+1}`: the cotangent of `b_t` is `l_t`, that of
        `a_t` is `l_t x_{t-1}`, that of `init` is `a_1 l_1`. (JAX conjugates nothing.)

        **Arguments:**

        - `a`, `init`, `reverse`: what `solve` was given. `solve` made `x` of them.
        - `g`: the cotangents of `x`, of its shape and dtype.
        - `with_a`: whether those of `a` are wanted.

        **Returns:**

        The cotangents of `a` (or `None`), of `b` and of `init`, each of the shape of
        its argument.
        """

    @abc.abstractmethod
    def reasons_against_platform(self, platform: str) -> list[str]:
        """Why this scan cannot be compiled for `"cpu"`, `"cuda"`, ...; empty if it can.

        Asked when a computation is lowered, which is when the platform is known. A scan
        that was asked for by name raises with these reasons; the automatic choice takes
        another one.
        """
