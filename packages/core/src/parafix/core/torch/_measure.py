"""Measures of states `(T, B, n)`: one number for each of the `B` samples."""

from typing import Any

import torch
from torch import Tensor


# How many times a reduction takes together.
STRETCH = 32


def max_abs(x: Tensor) -> Tensor:
    """`max |x|`; NaN if there is one."""
    return x.abs().amax((0, 2))


def ratio(x: Tensor, tol: Tensor) -> Tensor:
    """`x / tol`, where 0 / 0 is an entry that is met exactly at zero tolerance."""
    return torch.where(x == 0, 0, x / tol)


def tolerance(rtol: Any, atol: Any, z: Tensor) -> Tensor:
    """`atol + rtol |z|`; each is a number, or one for each entry of a state."""
    return z.abs().mul_(_beside(rtol, z)).add_(_beside(atol, z))


def _beside(x, z):
    return x.to(z.dtype) if isinstance(x, Tensor) else x


def first(where: Tensor, begin: int, length: int) -> Tensor:
    """The first time at which `where`, `(T, B, n)`, is true anywhere.

    The first of its times is `begin`; `length` if there is none.
    """
    hit = where.any(-1)
    times = torch.arange(begin, begin + hit.shape[0], device=hit.device)
    return torch.where(hit, times[:, None], length).amin(0)


def rounded_throughout(r: Tensor) -> Tensor:
    """Whether no entry of `r` is exactly zero for a stretch of times."""
    count, samples, size = r.shape
    stretch = min(count, STRETCH)
    whole = count // stretch * stretch
    moving = r != 0
    blocks = moving[:whole].reshape(-1, stretch, samples, size).any(1)
    return blocks.all(0).all(-1) & moving[count - stretch :].any(0).all(-1)


def at(x: Tensor, times: Tensor) -> Tensor:
    """`x[times[b], b]` for every sample: `(B, n)` of `(T, B, n)`."""
    times = times.clamp(0, x.shape[0] - 1)
    return x[times, torch.arange(x.shape[1], device=x.device)]


def all_finite(x: Tensor) -> bool:
    """Whether all numbers are finite; `False` also where their sum overflows.

    One pass: a sum holds on to what is not finite.
    """
    return bool(torch.isfinite(x.sum()))
