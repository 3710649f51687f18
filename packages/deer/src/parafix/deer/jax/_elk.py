from jaxtyping import ArrayLike

from parafix.core.jax import AbstractScan, AbstractSweep, jacobian

from ._deer import SWEEP_ARGUMENTS
from ._quasi import diagonal
from ._trust_region import check_radius, TrustRegion


class ELK(AbstractSweep):
    """ELK: DEER in a trust region, which holds updates back that would go too far.

    `A_t` is the Jacobian of the step times what a Kalman gain leaves of it
    ([`parafix.deer.jax.TrustRegion`][] has the equations). The first iterates of DEER
    can run away where products of Jacobians are large, even if at the solution they are
    small; those of ELK stay within reach of `radius`. With an infinite radius it is
    DEER, sweep by sweep, and with a small one it turns into Jacobi's iteration.

    ??? cite "Reference"

        Gonzalez, Warrington, Smith and Linderman, "Towards scalable and stable
        parallelization of nonlinear RNNs", NeurIPS 2024, section 4.
    """

    rtol: ArrayLike
    atol: ArrayLike
    scan: str | AbstractScan = "auto"
    chunk: int | None = None
    radius: ArrayLike = 100.0

    def __check_init__(self):
        check_radius(self.radius)

    @property
    def damping(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return TrustRegion(self.radius)

    def transition(self, step, z, x):
        return jacobian(step, z, x)

    def num_linear(self, size):
        return size


class QuasiELK(AbstractSweep):
    """Quasi-ELK: quasi-DEER in a trust region; everything in it is diagonal.

    `O(T n)`, as quasi-DEER, and as stable as ELK. With an infinite radius it is
    quasi-DEER, sweep by sweep.

    ??? cite "Reference"

        Gonzalez, Warrington, Smith and Linderman, "Towards scalable and stable
        parallelization of nonlinear RNNs", NeurIPS 2024, section 4.
    """

    rtol: ArrayLike
    atol: ArrayLike
    scan: str | AbstractScan = "auto"
    chunk: int | None = None
    radius: ArrayLike = 100.0

    def __check_init__(self):
        check_radius(self.radius)

    @property
    def damping(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return TrustRegion(self.radius)

    def transition(self, step, z, x):
        return diagonal(step, z, x)

    def num_linear(self, size):
        return size


_RADIUS = """
- `radius`: how far a state may move in a sweep before it is held back; in the units of
    the state. Zero to infinity.
"""
ELK.__init__.__doc__ = SWEEP_ARGUMENTS.rstrip() + _RADIUS
QuasiELK.__init__.__doc__ = SWEEP_ARGUMENTS.rstrip() + _RADIUS
