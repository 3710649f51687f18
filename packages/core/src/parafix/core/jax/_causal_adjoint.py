"""Derivatives of a causal solve at its solution."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from ._entries import count_of, Entries, is_float, same


_Map = Callable[[Entries], Entries]


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

    if jax.tree.leaves(t_fn):
        _, b = eqx.filter_jvp(lambda fn: image(fn, floats), (fn,), (t_fn,))
    else:
        b = jax.tree.map(jnp.zeros_like, floats)
    _, jvp = jax.linearize(lambda floats: image(fn, floats), floats)
    t = nilpotent_solve(jvp, b)
    # What is not a number has no tangent.
    t = jax.tree.map(lambda x, t: jnp.where(x == x, t, jnp.nan), floats, t)
    return (z, rest), (eqx.combine(t, t_others), t_rest)


def nilpotent_solve(product: _Map, b: Entries) -> Entries:
    """`t` with `t = product(t) + b`, where some power of the linear product is zero.

    Leaves `(N, ...)`; `N` products at most. Right to every order, and transposable.
    """

    def solve(matvec, b):
        del matvec
        return _iterated(product, b)

    def transpose_solve(vecmat, b):
        del vecmat
        transposed = jax.linear_transpose(product, b)
        return _iterated(lambda t: transposed(t)[0], b)

    def matvec(t):
        return jax.tree.map(jnp.subtract, t, product(t))

    return lax.custom_linear_solve(matvec, b, solve, transpose_solve)


def _iterated(product, b):
    length = count_of(b)

    def moving(carry):
        _, moves, count = carry
        return moves & (count < length)

    def body(carry):
        t, _, count = carry
        new = jax.tree.map(jnp.add, product(t), b)
        return new, ~same(t, new).all(), count + 1

    return lax.while_loop(moving, body, (b, jnp.array(True), jnp.array(0)))[0]
