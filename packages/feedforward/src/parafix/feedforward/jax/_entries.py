"""Pytrees whose leaves have the entries of a causal problem as their first axis."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped


Entries = PyTree[Shaped[Array, "N ..."]]


def count_of(z: Entries) -> int:
    """`N`, the number of entries."""
    return jax.tree.leaves(z)[0].shape[0]


def even(number: int | None, count: int) -> int:
    """`number`, or `sqrt(count)` rounded up if `None`; at least one."""
    return max(1, math.isqrt(max(count - 1, 0)) + 1) if number is None else number


def chosen(where: Bool[Array, " N"], a: Entries, b: Entries) -> Entries:
    """The entries of `a` where `where` is true, and those of `b` elsewhere."""

    def choose(x, y):
        return jnp.where(jnp.expand_dims(where, tuple(range(1, x.ndim))), x, y)

    return jax.tree.map(choose, a, b)


def flattened(z: Entries) -> Float[Array, "N n"]:
    """All real numbers of an entry in a row, at least of single precision."""
    parts = []
    for x in jax.tree.leaves(z):
        x = x.reshape(x.shape[0], -1)
        parts += [x.real, x.imag] if jnp.iscomplexobj(x) else [x]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *(x.dtype for x in parts))
    return jnp.concatenate([x.astype(dtype) for x in parts], 1)


def unflattened(flat: Float[Array, "N n"], like: Entries) -> Entries:
    """The inverse of `flattened`, with the shapes and dtypes of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    sizes = [x.size // max(1, x.shape[0]) for x in leaves for _ in _parts(x)]
    parts = iter(jnp.split(flat, np.cumsum(sizes)[:-1], 1))
    found = []
    for x in leaves:
        numbers = [next(parts).astype(x.real.dtype) for _ in _parts(x)]
        found.append(jax.lax.complex(*numbers) if _parts(x)[1:] else numbers[0])
    found = [y.reshape(x.shape) for x, y in zip(leaves, found, strict=True)]
    return jax.tree.unflatten(treedef, found)


def _parts(x):
    return ("real", "imaginary") if jnp.iscomplexobj(x) else ("real",)
