"""Trees of tensors `(B, N, ...)`: samples, then the entries of a causal problem."""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


Leaves = Sequence[Tensor]


def count_of(z: Leaves) -> int:
    """`N`, the number of entries."""
    return z[0].shape[1]


def even(number: int | None, count: int) -> int:
    """`number`, or `sqrt(count)` rounded up if `None`; at least one."""
    return max(1, math.isqrt(max(count - 1, 0)) + 1) if number is None else number


def chosen(where: Tensor, a: Leaves, b: Leaves) -> tuple[Tensor, ...]:
    """The entries of `a` where `where`, `(B, N)`, is true, else those of `b`."""
    pairs = zip(a, b, strict=True)
    return tuple(
        torch.where(where.reshape(*where.shape, *(1,) * (x.ndim - 2)), x, y)
        for x, y in pairs
    )


def flattened(z: Leaves) -> Tensor:
    """All real numbers of an entry in a row: `(B, N, n)`, at least single precision."""
    parts = []
    for x in z:
        x = x.reshape(*x.shape[:2], x[0, 0].numel())
        parts += [x.real, x.imag] if x.is_complex() else [x]
    dtype = reduce(torch.promote_types, (x.dtype for x in parts), torch.float32)
    return torch.cat([x.to(dtype) for x in parts], 2)


def unflattened(flat: Tensor, like: Leaves) -> tuple[Tensor, ...]:
    """The inverse of `flattened`, with the shapes and dtypes of `like`."""
    sizes = [x[0, 0].numel() for x in like for _ in _parts(x)]
    parts = iter(flat.split(sizes, 2))
    found = []
    for x in like:
        real = torch.empty((), dtype=x.dtype).real.dtype if x.is_complex() else x.dtype
        numbers = [next(parts).to(real) for _ in _parts(x)]
        y = torch.complex(*numbers) if x.is_complex() else numbers[0]
        found.append(y.reshape(x.shape))
    return tuple(found)


def _parts(x):
    return ("real", "imaginary") if x.is_complex() else ("real",)
