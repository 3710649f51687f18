import dataclasses

from parafix.core.torch import AbstractDamping, AbstractSweep, jacobian

from ._damping import as_damping


@dataclasses.dataclass(frozen=True)
class DEER(AbstractSweep):
    """DEER: Newton's method on all times at once; `A_t` is the Jacobian of the step.

    Quadratic convergence: a handful of sweeps for a recurrence that forgets, whatever
    its length; exactly one update for a linear recurrence. A sweep costs `n` pulls
    through the step and one dense affine scan: memory `O(T n^2)` without chunks or
    windows. Of a step that declares its structure it costs what the structure does: one
    pull and `O(T n)` if it is diagonal, `d` pulls and `O(T n d)` for blocks of size
    `d`.

    **Arguments:**

    As those of [`parafix.core.torch.AbstractSweep`][], and

    - `damping`: what holds the matrices back: `None` for nothing, `"auto"` for
        [`parafix.deer.torch.AdaptiveDamping`][], which does so after the residual has
        grown, or an [`parafix.core.torch.AbstractDamping`][].

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024, equation 5, here in update form.
    """

    damping: AbstractDamping | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "damping", as_damping(self.damping))

    @property
    def newton(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        # What is held back is no Newton step.
        return self.damping is None

    def transition(self, step, z, x):
        return jacobian(step, z, x)

    def num_linear(self, size):
        return size
