from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._causality import Causality, cuts, look
from ._entries import all_finite, by_entry, count_of, is_float, same


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

    - `f`, `z`: as in [`parafix.core.jax.solve_causal`][]. The point is drawn around
        `z`; integers are taken from those in `z` and in `f(z)`.
    - `num_cuts`: how many cuts are looked at, the first and the last among them.
    - `seed`: of what is drawn.
    - `exact`: whether what differs by no more than rounding, as the result of an FFT
        does, counts as a dependence. It does for `mode="exact"`.

    **Returns:**

    A [`parafix.core.jax.Causality`][], or `None` if `f` returns what is being traced.
    """
    z = jax.tree.map(np.asarray, z)
    draw = np.random.default_rng(seed)
    image = _image(f, z)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(image)):
        return None

    def drawn(z):
        return jax.tree.map(lambda x, y: _drawn(draw, x, np.asarray(y)), z, image)

    point = drawn(z)

    def evaluate(other, cut):
        mixed = jax.tree.map(
            lambda x, y: np.concatenate([x[:cut], y[cut:]]), point, other
        )
        return _image(f, mixed)

    return look(
        lambda cut: evaluate(drawn(z), cut),
        lambda a, b: np.asarray(same(a, b) | ~all_finite(a) | ~all_finite(b)),
        _apart,
        count_of(image),
        cuts(count_of(image), num_cuts, draw),
        exact,
        _eps(image),
    )


@eqx.filter_jit
def _image(f, z):
    return f(z)


def _drawn(draw, x, y):
    """Other values for the entries of a leaf."""
    if x.dtype == bool:
        return draw.random(x.shape) < 0.5
    if np.issubdtype(x.dtype, np.inexact):
        noise = draw.standard_normal(x.shape)
        if np.iscomplexobj(x):
            noise = noise + 1j * draw.standard_normal(x.shape)
        # What overflows says nothing.
        base = np.where(np.abs(x) < 1e6, x, 0)
        return (base + noise * (1 + np.abs(base))).astype(x.dtype)
    pool = np.unique(np.concatenate([x.ravel(), y.ravel()]))
    return draw.choice(pool, x.shape).astype(x.dtype)


def _apart(a, b):
    """How far the entries are apart, relative to the largest; infinite for integers."""
    found = []
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        floats = is_float(x)
        x, y = np.asarray(by_entry(x)), np.asarray(by_entry(y))
        if floats:
            most = np.max(np.abs(x), initial=0, where=np.isfinite(x))
            found.append((np.abs(x - y) / (most or 1)).max(1, initial=0))
        else:
            found.append(np.where(x == y, 0, np.inf).max(1, initial=0))
    return np.max(found, 0)


def _eps(image):
    floats = [jnp.finfo(x.dtype).eps for x in jax.tree.leaves(image) if is_float(x)]
    return float(max(floats, default=0))
