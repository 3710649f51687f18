import dataclasses

import torch

from parafix.core.torch import (
    AbstractDamping,
    AbstractSweep,
    Diagonal,
    jacobian,
    structure_of,
)

from ._damping import as_damping


@dataclasses.dataclass(frozen=True)
class QuasiDEER(AbstractSweep):
    """Quasi-DEER: `A_t` is the diagonal of the Jacobian of the step.

    The scan of a sweep is diagonal, `O(T n)`, where DEER multiplies matrices. The
    convergence is linear, so there are more sweeps: two to four times as many for a
    gated recurrence, and many where its units depend more on each other than on
    themselves. Of a step whose Jacobian is diagonal it is DEER.

    The diagonal is exact, which takes the pulls of the whole Jacobian; or estimated
    from one, `v * (J^T v)` with random signs `v`, whose mean is the diagonal. The
    certificate and the gradient use the whole Jacobian, as for every sweep.

    **Arguments:**

    As those of [`parafix.core.torch.AbstractSweep`][], and

    - `probe`: estimate the diagonal from one pull, with the same signs at all times, in
        all samples and in all sweeps.
    - `damping`: as that of [`parafix.deer.torch.DEER`][].

    ??? cite "Reference"

        Gonzalez, Warrington, Smith and Linderman, "Towards scalable and stable
        parallelization of nonlinear RNNs", NeurIPS 2024, section 3. The estimate of a
        diagonal is that of Bekas, Kokiopoulou and Saad, "An estimator for the diagonal
        of a matrix", Applied Numerical Mathematics, 2007.
    """

    probe: bool = False
    damping: AbstractDamping | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "damping", as_damping(self.damping))

    def transition(self, step, z, x):
        if self.probe:
            return _probed(step, z, x)
        return diagonal(step, z, x)

    def num_linear(self, size):
        return 1 if self.probe else size


@dataclasses.dataclass(frozen=True)
class Picard(AbstractSweep):
    """Picard: `A_t = I`, so `z'_t = init + sum_{s <= t} f(z)_s - z_{s-1}`.

    No Jacobian; the scan is a cumulative sum. It pays where a step changes the state by
    little, as that of an ODE or of Langevin dynamics on a fine grid. Where a step
    forgets, as that of a gated recurrence, iterates grow before they converge, if a
    smaller number of sweeps than of steps suffices at all.

    **Arguments:**

    As those of [`parafix.core.torch.AbstractSweep`][], and

    - `damping`: as that of [`parafix.deer.torch.DEER`][].

    ??? cite "Reference"

        Picard's iteration of an integral equation. As one of this family: Gonzalez,
        Buchanan, Lee, Liu, Wang, Zoltowski, Ré and Linderman, "A unifying framework for
        parallelizing sequential models with linear dynamical systems", 2025.
    """

    damping: AbstractDamping | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "damping", as_damping(self.damping))

    def transition(self, step, z, x):
        return step(z, x), torch.ones_like(z)

    def num_linear(self, size):
        del size
        return 0


def diagonal(step, z, x):
    """`step(z, x)` and the diagonal of its Jacobian, in the pulls of the whole."""
    f, a = jacobian(step, z, x)
    return f, structure_of(step).diagonal(a)


def _probed(step, z, x):
    # The same in every run: half of the signs are minus, up to chance.
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, z.shape[-1:], generator=generator)
    v = (2 * bits - 1).to(z)
    # The pull of ones through `v * step` is `J^T v`. Signs are multiplied exactly.
    f, pulled = Diagonal().jacobian(lambda z, x: v * step(z, x), z, x)
    return v * f, v * pulled
