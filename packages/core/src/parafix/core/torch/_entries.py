"""Trees of tensors `(B, N, ...)`: samples, then the entries of a causal problem."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


Leaves = Sequence[Tensor]

# Of as many bytes as a float.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def by_entry(x: Tensor) -> Tensor:
    """`x` with all axes after the second as one: `(B, N, m)`."""
    return x.reshape(*x.shape[:2], -1)


def is_float(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def all_finite(z: Leaves) -> Tensor:
    """Which entries are finite in all leaves: `(B, N)`."""
    return _everywhere([by_entry(torch.isfinite(x)).all(2) for x in z])


def same(a: Leaves, b: Leaves) -> Tensor:
    """Which entries agree in all bits, in all leaves; one NaN is as good as another."""
    pairs = zip(a, b, strict=True)
    return _everywhere([by_entry(_same(x, y)).all(2) for x, y in pairs])


def _same(x, y):
    if x.is_complex():
        return _same(x.real, y.real) & _same(x.imag, y.imag)
    if not is_float(x):
        return x == y
    bits = _INTEGERS[x.itemsize]
    return (x.view(bits) == y.view(bits)) | (torch.isnan(x) & torch.isnan(y))


def _everywhere(flags):
    found = flags[0]
    for other in flags[1:]:
        found = found & other
    return found


def distance(z: Leaves, f: Leaves, rtol: Any, atol: Any) -> Tensor:
    """`max |f - z| / (atol + rtol |z|)` of every entry: `(B, N)`.

    Infinite where leaves that are not floats differ, and 0 where two NaN meet.
    """
    found = None
    for x, y in zip(z, f, strict=True):
        equal = _same(x, y)
        if is_float(x):
            apart = (y - x).abs()
            apart = torch.where(apart == 0, 0, apart / (atol + rtol * x.abs()))
            apart = torch.where(torch.isnan(apart), torch.inf, apart)
            apart = torch.where(equal, 0, apart)
        else:
            apart = torch.where(equal, 0.0, torch.inf)
        apart = by_entry(apart)
        most = apart.amax(2) if apart.shape[2] else apart.new_zeros(apart.shape[:2])
        found = most if found is None else torch.maximum(*_alike(found, most))
    assert found is not None
    return found


def _alike(x, y):
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def chosen(where: Tensor, a: Leaves, b: Leaves) -> tuple[Tensor, ...]:
    """The entries of `a` where `where`, `(B, N)`, is true, else those of `b`."""
    pairs = zip(a, b, strict=True)
    return tuple(torch.where(_beside(where, x), x, y) for x, y in pairs)


def _beside(where, x):
    return where.reshape(*where.shape, *(1,) * (x.ndim - where.ndim))
