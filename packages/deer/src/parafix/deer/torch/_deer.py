import dataclasses
from typing import ClassVar

from parafix.core.torch import AbstractSweep, jacobian


@dataclasses.dataclass(frozen=True)
class DEER(AbstractSweep):
    """DEER: Newton's method on all times at once; `A_t` is the Jacobian of the step.

    Quadratic convergence: a handful of sweeps for a recurrence that forgets, whatever
    its length; exactly one update for a linear recurrence. A sweep costs `n` pulls
    through the step and one dense affine scan: memory `O(T n^2)` without chunks or
    windows.

    **Arguments:**

    As those of [`parafix.core.torch.AbstractSweep`][].

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024, equation 5, here in update form.
    """

    newton: ClassVar[bool] = True

    def transition(self, step, z, x):
        return jacobian(step, z, x)

    def num_linear(self, size):
        return size
