from typing import ClassVar

from jaxtyping import ArrayLike

from parafix.core.jax import AbstractScan, AbstractSweep, jacobian


class DEER(AbstractSweep):
    """DEER: Newton's method on all times at once; `A_t` is the Jacobian of the step.

    Quadratic convergence: a handful of sweeps for a recurrence that forgets, whatever
    its length; exactly one update for a linear recurrence. A sweep costs `n` tangents
    of the step and one dense affine scan: memory `O(T n^2)` without chunks or windows.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024, equation 5, here in update form.
    """

    rtol: ArrayLike
    atol: ArrayLike
    scan: str | AbstractScan = "auto"
    chunk: int | None = None
    newton: ClassVar[bool] = True

    def transition(self, step, z, x):
        return jacobian(step, z, x)

    def num_linear(self, size):
        return size


DEER.__init__.__doc__ = """**Arguments:**

- `rtol`, `atol`: relative and absolute tolerance: a state `z` is within tolerance if
    the residual and the last update are at most `atol + rtol |z|`, entry by entry.
- `scan`: an [`parafix.core.jax.AbstractScan`][] or a registered name, for the affine
    recurrence inside a sweep; `"auto"` goes by the platform.
- `chunk`: hold Jacobian blocks for this many times at once; `None` decides. It changes
    memory and speed, and the numbers to rounding.
"""
