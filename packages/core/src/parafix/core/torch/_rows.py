"""What rootfinders remember: rows `(B, m, n)`, and products of every sample by itself.

Sums of products of entries, and no products of matrices: those round by the size of the
batch. `inplace` says that memory may be overwritten and that nothing is recorded.
"""

import torch
from torch import Tensor

from ._iteration import may_overwrite


def length(x: Tensor) -> Tensor:
    """The two-norm of every row, with a slope of zero at zero: `(B,)`."""
    squared = (x * x).sum(-1)
    if may_overwrite():
        return squared.sqrt()
    # The square root has no slope at zero.
    return torch.where(squared > 0, torch.where(squared > 0, squared, 1).sqrt(), 0)


def divisor(x: Tensor, inplace: bool) -> Tensor:
    """The length, `(..., 1)`; infinite, or as good as that, where it is zero."""
    if inplace:
        # What is divided by it is zero, or so small that its square is none.
        return torch.linalg.vector_norm(x, 2, -1, True).clamp_min(_TINY[x.dtype])
    squared = (x * x).sum(-1, keepdim=True)
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1).sqrt(), torch.inf)


_TINY = {
    dtype: torch.finfo(dtype).tiny ** 0.5 for dtype in (torch.float32, torch.float64)
}


def products(rows: Tensor, x: Tensor) -> Tensor:
    """The product of each of `(B, m, n)` with the vector of its sample: `(B, m)`."""
    return torch.linalg.vecdot(rows, x.unsqueeze(1))


def combined(weights: Tensor, rows: Tensor) -> Tensor:
    """The sum of `(B, m, n)` over its rows, with weights `(B, m, 1)`: `(B, n)`."""
    return torch.linalg.vecdot(weights, rows, dim=1)


def seen(x: Tensor, inplace: bool) -> bool:
    """Whether the host reads numbers for nothing."""
    return inplace and x.device.type == "cpu"


def all_apart(dots: Tensor, x: Tensor, y: Tensor, eps: float) -> bool:
    """Whether no sample's `x` and `y`, of products `dots`, are orthogonal to `eps`."""
    lengths = (torch.linalg.vector_norm(each, 2, 1, True) for each in (x, y))
    cosines = dots / torch.mul(*lengths)
    # False where one is zero.
    return cosines.abs().min().item() > eps


def put(buffer: Tensor, slot: int, value: Tensor | float, inplace: bool) -> Tensor:
    """`buffer` with `value` in row `slot` of every sample."""
    if inplace:
        row = buffer.select(1, slot)
        _ = row.copy_(value) if isinstance(value, Tensor) else row.fill_(value)
        return buffer
    index = torch.arange(buffer.shape[1], device=buffer.device) == slot
    index = index.reshape(1, -1, *[1] * (buffer.ndim - 2))
    if isinstance(value, Tensor):
        value = value[:, None]
    return torch.where(index, value, buffer)
