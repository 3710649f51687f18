import math

import torch
from torch import Tensor


def max_abs(x: Tensor) -> Tensor:
    """The largest absolute value of every row, NaN if there is one: `(B,)`."""
    if x.shape[1] < 64:
        # One call instead of two, but slow on what is long.
        return torch.linalg.vector_norm(x, math.inf, 1)
    return x.abs().amax(1)


class Watch:
    """What the host knows of all samples at once: mostly, that none of them has ended.

    On a CPU a number is read for nothing, and most steps end no sample. So two numbers
    for a batch stand in for a dozen tensors with one for each sample. What they cannot
    decide, NaN among it, has to be looked at sample by sample: they may say too little,
    but never that a sample goes on that has ended.
    """

    def __init__(self, solver, limit: Tensor):
        self._rtol, self._atol = (
            float(x.max()) if isinstance(x, Tensor) else x
            for x in (solver.rtol, solver.atol)
        )
        self._eps = torch.finfo(limit.dtype).eps
        self._rests = solver.rests
        # How large a residual may grow in any sample, and how large `z` is in any.
        self._limit = limit.nan_to_num(math.inf).min().item()
        self._size = math.nan
        # Bounds of the best residuals so far, and of those of this step.
        self._least, self._greatest = math.inf, math.inf
        self._low, self._high = math.nan, math.nan

    def sees(self, z: Tensor) -> None:
        """Takes note of the iterates, `(B, n)`, zero for samples that have ended."""
        self._size = max_abs(z).max().item()

    def all_go_on(self, measured: Tensor) -> bool:
        """Whether these residuals in units of the tolerance end no sample."""
        low, high = measured.aminmax()
        self._low, self._high = low.item(), high.item()
        # At most so long is `f(z) - z` then, but for rounding.
        length = 1.001 * self._high * (self._atol + self._rtol * self._size)
        return self._low > 1 and length <= self._limit

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
        low, high = lengths.aminmax()
        longest = high.item()
        self._size += longest
        if not longest < math.inf:
            return False
        return not self._rests or low.item() > 2 * self._eps * self._size

    @property
    def moving(self) -> float:
        """What to take for the length of a step of a sample that has ended."""
        return 4 * self._eps * self._size
