import math

import torch
from torch import Tensor


def max_abs(x: Tensor) -> Tensor:
    """The largest absolute value of every row, NaN if there is one: `(B,)`."""
    if x.shape[1] < 64:
        # One call instead of two, but slow on what is long.
        return torch.linalg.vector_norm(x, math.inf, 1)
    return x.abs().amax(1)


def extremes(x: Tensor) -> tuple[float | int, float | int]:
    """The least and the greatest number, read by the host; both NaN if one is."""
    if x.numel() == 1:
        # Both are this one.
        number = x.item()
        return number, number
    low, high = x.aminmax()
    return low.item(), high.item()


def surely_finite(x: Tensor) -> bool:
    """Whether the sum of all entries says that they are finite."""
    # Finite numbers may have a sum that is not; then each is looked at.
    return math.isfinite(x.sum().item())


class Watch:
    """What the host knows of all samples at once: mostly, that none of them has ended.

    On a CPU a number is read for nothing, and most steps end no sample. So two numbers
    for a batch stand in for a dozen tensors with one for each sample. What they cannot
    decide, NaN among it, has to be looked at sample by sample: they may say too little,
    but never that a sample goes on that has ended.
    """

    def __init__(self, solver, z: Tensor):
        self._rtol, self._atol = (
            float(x.max()) if isinstance(x, Tensor) else x
            for x in (solver.rtol, solver.atol)
        )
        self._eps = torch.finfo(z.dtype).eps
        self._rests = solver.rests
        # How large a residual may grow in any sample, and how large `z` is in any.
        self._limit = math.inf
        self._size = math.nan
        # Bounds of the best residuals so far, and of those of this step.
        self._least, self._greatest = math.inf, math.inf
        self._low, self._high = math.nan, math.nan

    def sees(self, z: Tensor) -> bool:
        """Takes note of the iterates, `(B, n)`, zero for samples that have ended.

        Returns whether all entries are finite.
        """
        _, self._size = extremes(max_abs(z))
        return self._size < math.inf

    def limits(self, growth: float, first: Tensor) -> None:
        """No residual may grow by more than this factor from the first ones."""
        low, _ = extremes(first)
        if math.isnan(low):
            # Such a sample ends at once, and limits none.
            low = first.nan_to_num(math.inf).min().item()
        self._limit = growth * low

    def all_go_on(self, measured: Tensor) -> bool:
        """Whether these residuals in units of the tolerance end no sample."""
        self._low, self._high = extremes(measured)
        # At most so long is `f(z) - z` then, but for rounding.
        length = 1.001 * self._high * (self._atol + self._rtol * self._size)
        return self._low > 1 and length <= self._limit

    def all_converged(self) -> bool:
        """Whether the residuals that were seen last are within tolerance."""
        return self._high <= 1

    def improved(self) -> bool | None:
        """Whether all samples did, or none, by the residuals that were seen last.

        `None` if that is not known. To be called in every step, until a sample ends.
        """
        if self._high < self._least:
            self._least, self._greatest = self._low, self._high
            return True
        worse = self._low >= self._greatest
        # One that is not a number is less than nothing.
        self._least = min(self._least, self._low) if self._low >= 0 else -math.inf
        self._greatest = min(self._greatest, self._high)
        return False if worse else None

    def all_move(self, lengths: Tensor) -> bool:
        """Whether steps with these largest entries are finite and none is rounding."""
        shortest, longest = extremes(lengths)
        self._size += longest
        if not longest < math.inf:
            return False
        return not self._rests or shortest > 2 * self._eps * self._size

    @property
    def moving(self) -> float:
        """What to take for the length of a step of a sample that has ended."""
        return 4 * self._eps * self._size
