"""Pytrees whose leaves have the entries of a causal problem as their first axis."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree, Shaped

from ._measure import ratio


Entries = PyTree[Shaped[Array, "N ..."]]


def count_of(z: Entries) -> int:
    """`N`, the number of entries."""
    return jax.tree.leaves(z)[0].shape[0]


def by_entry(x: Array) -> Array:
    """`x` with all axes after the first as one."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def is_float(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def finite(x: Array) -> Bool[Array, "..."]:
    return jnp.isfinite(x) if is_float(x) else jnp.ones(x.shape, bool)


def all_finite(z: Entries) -> Bool[Array, " N"]:
    """Which entries are finite in all leaves."""
    return _everywhere([by_entry(finite(x)).all(1) for x in jax.tree.leaves(z)])


def same(a: Entries, b: Entries) -> Bool[Array, " N"]:
    """Which entries agree in all bits, in all leaves; one NaN is as good as another."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return _everywhere([by_entry(_same(x, y)).all(1) for x, y in pairs])


def _same(x, y):
    if jnp.iscomplexobj(x):
        return _same(x.real, y.real) & _same(x.imag, y.imag)
    if not is_float(x):
        return x == y
    equal = (x == y) & (jnp.signbit(x) == jnp.signbit(y))
    return equal | (jnp.isnan(x) & jnp.isnan(y))


def _everywhere(flags):
    return jnp.stack(flags).all(0)


def distance(
    z: Entries, f: Entries, rtol: ArrayLike, atol: ArrayLike
) -> Float[Array, " N"]:
    """`max |f - z| / (atol + rtol |z|)` of every entry.

    Infinite where leaves that are not floats differ, and 0 where two NaN meet.
    """
    found = []
    for x, y in zip(jax.tree.leaves(z), jax.tree.leaves(f), strict=True):
        equal = _same(x, y)
        if is_float(x):
            a, r = (jnp.asarray(number, x.real.dtype) for number in (atol, rtol))
            unit = a + r * jnp.abs(x)
            apart = ratio(jnp.abs(y - x), unit)
            apart = jnp.where(equal, 0, jnp.where(jnp.isnan(apart), jnp.inf, apart))
        else:
            apart = jnp.where(equal, 0, jnp.inf).astype(jnp.float32)
        found.append(by_entry(apart).max(1, initial=0))
    dtype = max((x.dtype for x in found), key=lambda dtype: dtype.itemsize)
    return jnp.stack([x.astype(dtype) for x in found]).max(0)


def chosen(where: Bool[Array, " N"], a: Entries, b: Entries) -> Entries:
    """The entries of `a` where `where` is true, and those of `b` elsewhere."""

    def choose(x, y):
        return jnp.where(jnp.expand_dims(where, tuple(range(1, x.ndim))), x, y)

    return jax.tree.map(choose, a, b)


def flattened(z: Entries) -> Float[Array, "N n"]:
    """All real numbers of an entry of floats in a row, as the widest dtype."""
    parts = []
    for x in map(by_entry, jax.tree.leaves(z)):
        parts += [x.real, x.imag] if jnp.iscomplexobj(x) else [x]
    dtype = max((x.dtype for x in parts), key=lambda dtype: dtype.itemsize)
    return jnp.concatenate([x.astype(dtype) for x in parts], 1)


def unflattened(flat: Float[Array, "N n"], like: Entries) -> Entries:
    """The inverse of `flattened`, with the shapes and dtypes of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    counts = [2 if jnp.iscomplexobj(x) else 1 for x in leaves]
    sizes = [by_entry(x).shape[1] for x in leaves]
    parts = iter(jnp.split(flat, np.cumsum(np.repeat(sizes, counts))[:-1], 1))
    found = []
    for x, count in zip(leaves, counts, strict=True):
        numbers = [next(parts).astype(x.real.dtype) for _ in range(count)]
        y = jax.lax.complex(*numbers) if count == 2 else numbers[0]
        found.append(y.reshape(x.shape))
    return jax.tree.unflatten(treedef, found)
