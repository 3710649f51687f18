from jaxtyping import ArrayLike

from parafix.core.jax import AbstractDamping, AbstractScan, AbstractSweep, jacobian

from ._damping import damping_field


class DEER(AbstractSweep):
    """DEER: Newton's method on all times at once; `A_t` is the Jacobian of the step.

    Quadratic convergence: a handful of sweeps for a recurrence that forgets, whatever
    its length; exactly one update for a linear recurrence. A sweep costs `n` tangents
    of the step and one dense affine scan: memory `O(T n^2)` without chunks or windows.
    Of a step that declares its structure it costs what the structure does: one tangent
    and `O(T n)` if it is diagonal, `d` tangents and `O(T n d)` for blocks of size `d`.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024, equation 5, here in update form.
    """

    rtol: ArrayLike
    atol: ArrayLike
    scan: str | AbstractScan = "auto"
    chunk: int | None = None
    damping: AbstractDamping | None = damping_field()

    @property
    def newton(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        # What is held back is no Newton step.
        return self.damping is None

    def transition(self, step, z, x):
        return jacobian(step, z, x)

    def num_linear(self, size):
        return size


SWEEP_ARGUMENTS = """**Arguments:**

- `rtol`, `atol`: relative and absolute tolerance: a state `z` is within tolerance if
    the residual and the last update are at most `atol + rtol |z|`, entry by entry.
- `scan`: an [`parafix.core.jax.AbstractScan`][] or a registered name, for the affine
    recurrence inside a sweep; `"auto"` goes by the platform.
- `chunk`: hold Jacobians for this many times at once; `None` decides. It changes memory
    and speed, and the numbers to rounding.
"""
DAMPING_ARGUMENT = """
- `damping`: what holds the matrices back: `None` for nothing, `"auto"` for
    [`parafix.deer.jax.AdaptiveDamping`][], which does so after the residual has grown.
"""
DEER.__init__.__doc__ = SWEEP_ARGUMENTS.rstrip() + DAMPING_ARGUMENT
