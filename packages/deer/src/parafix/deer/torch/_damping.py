import dataclasses
from typing import Any

import torch

from parafix.core.torch import AbstractDamping


@dataclasses.dataclass(frozen=True)
class AdaptiveDamping(AbstractDamping):
    """`(1 - k) A_t`, with `k` above zero only after the residual has grown.

    `1 - k` is one at first, for each sample by itself. It is halved (`factor`) when the
    sum of `|f(z) - z|` over all times is larger than it was one sweep earlier, or not
    finite, and doubled, up to one, when it is not. So an easy solve is that of the
    undamped solver, sweep by sweep, and a hard one turns towards Jacobi's until it
    makes progress.

    **Arguments:**

    - `factor`: what `1 - k` is multiplied by when the residual has grown, and divided
        by when it has not.

    ??? cite "Reference"

        The damped Jacobian is the "scale-ELK" of Gonzalez, Warrington, Smith and
        Linderman, "Towards scalable and stable parallelization of nonlinear RNNs",
        NeurIPS 2024, with a fixed `k`.
    """

    factor: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1:
            raise ValueError(f"`factor` must be between 0 and 1, got {self.factor}.")

    def init(self, z):
        samples = z.shape[:1]
        return z.new_ones(samples), z.new_full(samples, torch.inf)

    def start(self, a):
        del a

    def damp(self, a, begin, memory, carry):
        del begin
        kept, _ = memory
        return kept.reshape(-1, *(1,) * (a.ndim - 2)) * a, carry

    def update(self, memory, residual):
        kept, last = memory
        finite = torch.isfinite(residual)
        # False for NaN, and from infinity to infinity.
        better = (residual <= last) & finite
        kept = torch.where(
            better, (kept / self.factor).clamp(max=1), kept * self.factor
        )
        return kept, torch.where(finite, residual, torch.inf)


def as_damping(damping: Any) -> AbstractDamping | None:
    """`damping` itself, or the one that `"auto"` stands for."""
    if isinstance(damping, str) and damping == "auto":
        return AdaptiveDamping()
    if damping is None or isinstance(damping, AbstractDamping):
        return damping
    raise TypeError(
        f'`damping` must be None, "auto" or an AbstractDamping, got {damping!r}.'
    )
