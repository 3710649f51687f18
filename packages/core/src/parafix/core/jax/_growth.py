"""How fast a chain amplifies errors: its largest Lyapunov exponent."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ._chain import Chain, chunk_size, jacobian, scan_chunks
from ._custom_types import FloatScalar, IntScalar, States
from ._measure import max_abs
from ._scan.algebra import compose
from ._segments import along_time


def lyapunov_exponent(
    problem: Chain, z: States, prefix: IntScalar, chunk: int | None = None
) -> FloatScalar:
    """`log |A_t ... A_1| / t` for the Jacobians of the first `t = prefix` steps.

    The largest Lyapunov exponent of the chain, as far as `t` steps show it: an error
    grows by `exp` of it in each step. NaN if `prefix` is zero or a derivative is not
    finite, minus infinity if nothing is remembered from the beginning to the end. `|.|`
    is the largest entry. Carries no derivative. Steps after a reset, of which nothing
    is remembered, are left out.

    Products are renormalised at every step. They are formed in `sqrt(T)` stretches side
    by side, and these are put together, so the depth is `O(sqrt(T))`.
    """
    fixed, z = jax.tree.map(
        lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, (problem, z)
    )
    dense = len(fixed.structure.shape(fixed.size)) > 1

    def times(a, product):
        """`a` after the product, which is a matrix of size one and a logarithm."""
        matrix, log = product
        matrix = compose(a, matrix, dense)
        size = max_abs(matrix)
        # Zero stays zero, and NaN stays NaN.
        return matrix / jnp.where(size == 0, 1, size), log + jnp.log(size)

    def one_after_the_other(product, elements):
        a, log = elements
        matrix, sofar = times(a, product)
        return (matrix, sofar + log), None

    def body(product, elements):
        lag, xs, index, resets = elements
        _, a = jax.vmap(lambda z, x: jacobian(fixed.step, z, x))(lag, xs)
        unit = _unit(fixed, a.dtype)
        inside = index < prefix
        if resets is not None:
            inside = inside & ~resets
        a = jnp.where(along_time(inside, a), a, unit)
        # Stretches of one length: what is missing at the end is filled by ones.
        length = a.shape[0]
        stretch = math.isqrt(length)
        count = -(-length // stretch)
        filling = jnp.broadcast_to(unit, (count * stretch - length, *unit.shape))
        a = jnp.concatenate([a, filling]).reshape(count, stretch, *unit.shape)
        start = (jnp.broadcast_to(unit, a[:, 0].shape), jnp.zeros(count, a.dtype))
        stretches, _ = lax.scan(
            lambda product, a: (jax.vmap(times)(a, product), None),
            start,
            jnp.moveaxis(a, 1, 0),
        )
        product, _ = lax.scan(one_after_the_other, product, stretches)
        return product, None

    dtype = fixed.init.dtype
    index = jnp.arange(fixed.length)
    count = prefix
    if fixed.resets is not None:
        count = ((index < prefix) & ~fixed.resets).sum()
    (_, log), _ = scan_chunks(
        body,
        (_unit(fixed, dtype), jnp.zeros((), dtype)),
        (fixed.lag(z), fixed.xs, index, fixed.resets),
        fixed.length,
        chunk_size(chunk, fixed.length, fixed.num_entries),
    )
    return log / count.astype(dtype)


def _unit(problem, dtype):
    """The identity, in the form of the structure of the chain."""
    shape = problem.structure.shape(problem.size)
    if len(shape) == 1:
        return jnp.ones(shape, dtype)
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)
