import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from parafix.core.jax import (
    AbstractDamping,
    AbstractScan,
    AbstractSweep,
    jacobian,
    structure_of,
)

from ._damping import damping_field
from ._deer import DAMPING_ARGUMENT, SWEEP_ARGUMENTS


class QuasiDEER(AbstractSweep):
    """Quasi-DEER: `A_t` is the diagonal of the Jacobian of the step.

    The scan of a sweep is diagonal, `O(T n)`, where DEER multiplies matrices. The
    convergence is linear, so there are more sweeps: two to four times as many for a
    gated recurrence, and many where its units depend more on each other than on
    themselves. Of a step whose Jacobian is diagonal it is DEER.

    The diagonal is exact, which takes the tangents of the whole Jacobian; or estimated
    from one product, `v * (J v)` with random signs `v`, whose mean is the diagonal. The
    certificate and the gradient use the whole Jacobian, as for every sweep.

    ??? cite "Reference"

        Gonzalez, Warrington, Smith and Linderman, "Towards scalable and stable
        parallelization of nonlinear RNNs", NeurIPS 2024, section 3. The estimate of a
        diagonal is that of Bekas, Kokiopoulou and Saad, "An estimator for the diagonal
        of a matrix", Applied Numerical Mathematics, 2007.
    """

    rtol: ArrayLike
    atol: ArrayLike
    scan: str | AbstractScan = "auto"
    chunk: int | None = None
    probe: bool = False
    damping: AbstractDamping | None = damping_field()

    def transition(self, step, z, x):
        if self.probe:
            return _probed(step, z, x)
        return diagonal(step, z, x)

    def num_linear(self, size):
        return 1 if self.probe else size


_PROBE = """
- `probe`: estimate the diagonal from one Jacobian-vector product, with the same signs
    at all times and in all sweeps."""
QuasiDEER.__init__.__doc__ = SWEEP_ARGUMENTS.rstrip() + _PROBE + DAMPING_ARGUMENT


class Picard(AbstractSweep):
    """Picard: `A_t = I`, so `z'_t = init + sum_{s <= t} f(z)_s - z_{s-1}`.

    No Jacobian; the scan is a cumulative sum. It pays where a step changes the state by
    little, as that of an ODE or of Langevin dynamics on a fine grid. Where a step
    forgets, as that of a gated recurrence, iterates grow before they converge, if a
    smaller number of sweeps than of steps suffices at all.

    ??? cite "Reference"

        Picard's iteration of an integral equation. As one of this family: Gonzalez,
        Buchanan, Lee, Liu, Wang, Zoltowski, Ré and Linderman, "A unifying framework for
        parallelizing sequential models with linear dynamical systems", 2025.
    """

    rtol: ArrayLike
    atol: ArrayLike
    scan: str | AbstractScan = "auto"
    chunk: int | None = None
    damping: AbstractDamping | None = damping_field()

    def transition(self, step, z, x):
        return step(z, x), jnp.ones_like(z)

    def num_linear(self, size):
        del size
        return 0


Picard.__init__.__doc__ = SWEEP_ARGUMENTS.rstrip() + DAMPING_ARGUMENT


def diagonal(step, z, x):
    """`step(z, x)` and the diagonal of its Jacobian, in the tangents of the whole."""
    f, a = jacobian(step, z, x)
    return f, structure_of(step).diagonal(a)


def _probed(step, z, x):
    # A constant of the program: half of the signs are minus, up to chance.
    signs = np.random.default_rng(0).choice([-1.0, 1.0], z.size)
    v = jnp.asarray(signs, z.dtype)
    f, product = jax.jvp(lambda z: step(z, x), (z,), (v,))
    return f, v * product
