from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._causality import Causality, cuts, look
from ._calculus import under_transforms
from ._entries import all_finite, by_entry, is_float, same


def check_causal(
    f: Callable[[Any], Any],
    z: Any,
    *,
    num_cuts: int = 4,
    seed: int = 0,
    exact: bool = True,
) -> Causality | None:
    """Whether entry `i` of `f(z)` depends on entries before `i` alone, as far as seen.

    `f` is evaluated twice at one point, which finds dropout and other randomness. Then,
    for some cuts `c`, entries from `c` on are exchanged for others, which may not
    change a bit of the entries of `f(z)` up to `c`. What depends on a later entry by
    accident of the point, or by less than rounding, is not seen; nor is anything where
    `f` is not finite.

    **Arguments:**

    - `f`, `z`: as in [`parafix.core.torch.solve_causal`][]. The point is drawn around
        `z`; integers are taken from those in `z` and in `f(z)`.
    - `num_cuts`: how many cuts are looked at, the first and the last among them.
    - `seed`: of what is drawn.
    - `exact`: whether what differs by no more than rounding, as the result of an FFT
        does, counts as a dependence. It does for `mode="exact"`.

    **Returns:**

    A [`parafix.core.torch.Causality`][], or `None` under a transform of `torch.func`.
    """
    if under_transforms():
        return None
    single = isinstance(z, Tensor)
    leaves = (z,) if single else tuple(z)

    def image(leaves):
        given = [x.clone() for x in leaves]
        out = f(given[0] if single else tuple(given))
        return [out.detach()] if single else [x.detach() for x in out]

    with torch.no_grad():
        first = image([x.detach() for x in leaves])
        pools = [_pool(x, y) for x, y in zip(leaves, first, strict=True)]
        draw = np.random.default_rng(seed)

        def drawn():
            return [_drawn(draw, x, y) for x, y in zip(leaves, pools, strict=True)]

        point = drawn()

        def evaluate(cut):
            other = drawn()
            pairs = zip(point, other, strict=True)
            return image([torch.cat([x[:, :cut], y[:, cut:]], 1) for x, y in pairs])

        length = leaves[0].shape[1]
        return look(
            evaluate,
            lambda a, b: (
                (same(a, b) | ~(all_finite(a) & all_finite(b))).all(0).tolist()
            ),
            _apart,
            length,
            cuts(length, num_cuts, draw),
            exact,
            _eps(leaves),
        )


def _pool(x, y):
    """The integers that occur."""
    if is_float(x) or x.dtype == torch.bool:
        return None
    return torch.unique(torch.cat([x.detach().reshape(-1), y.reshape(-1)]))


def _drawn(draw, x, pool):
    """Other values for the entries of a leaf."""
    x = x.detach()
    if x.dtype == torch.bool:
        return torch.as_tensor(draw.random(x.shape) < 0.5, device=x.device)
    if pool is not None:
        places = draw.integers(len(pool), size=tuple(x.shape))
        return pool[torch.as_tensor(places, device=x.device)]
    noise = draw.standard_normal(x.shape)
    if x.is_complex():
        noise = noise + 1j * draw.standard_normal(x.shape)
    # What overflows says nothing.
    base = torch.where(x.abs() < 1e6, x, 0)
    return base + torch.as_tensor(noise, device=x.device).to(x.dtype) * (1 + base.abs())


def _alike(a, b):
    finite = all_finite(a) & all_finite(b)
    return (same(a, b) | ~finite).all(0).tolist()


def _apart(a, b):
    """How far the entries are apart, relative to the largest; infinite for integers."""
    found = []
    for x, y in zip(a, b, strict=True):
        x, y = by_entry(x), by_entry(y)
        if is_float(x):
            sizes = torch.where(torch.isfinite(x), x.abs(), 0)
            most = float(sizes.max()) if sizes.numel() else 0.0
            apart = (x - y).abs() / (most or 1)
        else:
            apart = torch.where(x == y, 0.0, torch.inf)
        found.append(apart.flatten(2).amax((0, 2)).double())
    return torch.stack(found).amax(0).tolist()


def _eps(leaves):
    floats = [torch.finfo(x.dtype).eps for x in leaves if is_float(x)]
    return max(floats, default=0.0)
