"""Derivatives of a causal solve at its solution."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from ._entries import Entries, flattened, is_float, same, unflattened


_Flat = Float[Array, "N n"]


# The derivative of `z = f(z)` is the causal problem `t = J t + b`, and its transpose is
# one from the last entry to the first. Both are solved by their own sweeps: `J` is
# nilpotent, so `N` of them always suffice, and as many as `f` is deep do.
@eqx.filter_custom_jvp
def solved(fn: Any, solve: Any, guess: Entries) -> tuple[Entries, PyTree]:
    """`solve(fn, guess)`, a solution and what is known of it, with its derivatives.

    Forward and reverse mode, to every order, in all that `fn` closes over (it must be
    converted). The gradient with respect to the guess is zero.
    """
    return solve(fn, guess)


@solved.def_jvp
def _solved_jvp(primals, tangents):
    fn, solve, guess = primals
    t_fn, _, _ = tangents
    z, rest = solved(fn, solve, guess)
    floats, others = eqx.partition(z, is_float)
    zero = lambda x: jax.custom_derivatives.zero_from_primal(x, symbolic_zeros=True)
    t_rest = jax.tree.map(zero, rest)
    t_others = jax.tree.map(zero, others)
    if not jax.tree.leaves(floats):
        return (z, rest), (t_others, t_rest)

    def image(fn, floats):
        return eqx.filter(fn(eqx.combine(floats, others)), is_float)

    b = jax.tree.map(jnp.zeros_like, floats)
    if jax.tree.leaves(t_fn):
        _, found = eqx.filter_jvp(lambda fn: image(fn, floats), (fn,), (t_fn,))
        # A leaf that none of it reaches directly has no tangent.
        b = eqx.combine(found, b)
    _, jvp = jax.linearize(lambda floats: image(fn, floats), floats)
    # One array, for `custom_linear_solve` transposes only what is linear in all of its
    # right-hand side, and a leaf of zeros is not.
    product = lambda t: flattened(jvp(unflattened(t, floats)))
    t = unflattened(nilpotent_solve(product, flattened(b)), floats)
    # What is not a number has no tangent.
    t = jax.tree.map(lambda x, t: jnp.where(x == x, t, jnp.nan), floats, t)
    return (z, rest), (eqx.combine(t, t_others), t_rest)


def nilpotent_solve(product: Callable[[_Flat], _Flat], b: _Flat) -> _Flat:
    """`t` with `t = product(t) + b`, where some power of the linear product is zero.

    `N` products at most. Right to every order, and transposable.
    """

    def solve(matvec, b):
        del matvec
        return _iterated(product, b)

    def transpose_solve(vecmat, b):
        del vecmat
        transposed = jax.linear_transpose(product, b)
        return _iterated(lambda t: transposed(t)[0], b)

    return lax.custom_linear_solve(lambda t: t - product(t), b, solve, transpose_solve)


def _iterated(product, b):
    def moving(carry):
        _, moves, count = carry
        return moves & (count < len(b))

    def body(carry):
        t, _, count = carry
        new = product(t) + b
        return new, ~same(t, new).all(), count + 1

    return lax.while_loop(moving, body, (b, jnp.array(True), jnp.array(0)))[0]
