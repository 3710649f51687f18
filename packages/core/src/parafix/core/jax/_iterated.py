"""The linear recurrence of a chain's derivatives, without its matrices."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from ._affine_scan import affine_scan
from ._custom_types import BoolScalar, State, States
from ._scan import AbstractScan
from ._segments import along_time, since_reset


Product = Callable[[States], States]

# A Jacobian of more products than this is not formed, if nobody says: measured, see
# docs/adr/0009-iterated-adjoint.md.
MOST_PRODUCTS = 128

# How many random vectors the diagonal is estimated from, and how many of its standard
# errors are taken off: measured, see the same place.
_PROBES, _DOUBT = 8, 3


def solve_iterated(
    product: Product,
    b: States,
    init: State,
    scan: str | AbstractScan,
    resets: Bool[Array, " T"] | None,
    rtol: Any,
    max_steps: int | None,
    checked: Callable[[States, BoolScalar], States],
) -> States:
    """`x_t = A_t x_{t-1} + b_t` by sweeps, each of one product with all `A_t`.

    A sweep takes the residual `r_t = b_t + A_t x_{t-1} - x_t` and adds to `x` the
    solution of `d_t = D_t d_{t-1} + r_t`, whose `D_t` are diagonal. Where `x` is right
    up to `t`, it is so up to `t + 1` afterwards, whatever `D`. So `T` sweeps always are
    enough, but for rounding, and few where the chain forgets or `D` says what it
    remembers.

    It ends when `|r_t|` is at most `rtol` times the largest `|x_s|` and `|b_s|` that
    came before: what rounding leaves of the same recurrence computed step by step.
    Derivatives are those of the linear system, of every order and in both modes; a
    cotangent is solved for by the same sweeps the other way, with pulls.

    **Arguments:**

    - `product`: the products of all `A_t` with `(T, n)`, linear; zero at resets.
    - `b`, `init`: shapes `(T, n)` and `(n,)`.
    - `max_steps`: at most so many sweeps; `T + 2` by default.
    - `checked`: what becomes of a solution, given whether it has been reached.
    """
    length = b.shape[0]
    d = lax.stop_gradient(_diagonal(product, b, resets))
    starts = jnp.zeros(length, bool) if resets is None else resets
    none, edge = jnp.zeros_like(d[:1]), jnp.ones(1, bool)
    # Two more than `T`: what has cancelled in an entry is lost until the next sweep.
    budget = length + 2 if max_steps is None else max_steps

    # As in `affine_scan`, the unknown is the states at `T + 1` times, `init` the first.
    def matvec(x):
        return x - jnp.concatenate([jnp.zeros_like(x[:1]), product(x[:-1])])

    def forwards(matvec, b):
        diagonal = jnp.concatenate([none, d])
        return _sweeps(matvec, b, diagonal, jnp.concatenate([edge, starts]))

    def backwards(vecmat, g):
        # The same the other way: what enters a step there is what leaves it here.
        flipped = lambda x: vecmat(x[::-1])[::-1]
        diagonal = jnp.concatenate([d, none])[::-1]
        begin = jnp.concatenate([starts, edge])[::-1]
        return _sweeps(flipped, g[::-1], diagonal, begin)[::-1]

    def _sweeps(matvec, b, diagonal, starts):
        x, ok = _iterate(matvec, b, diagonal, starts, scan, rtol, budget)
        return x if budget >= length else checked(x, ok)

    b = jnp.concatenate([init[None], b])
    return lax.custom_linear_solve(matvec, b, forwards, backwards)[1:]


def _iterate(matvec, b, diagonal, starts, scan, rtol, budget):
    """`matvec(x) = b`, which is lower bidiagonal; and whether it has been reached."""

    def correction(r):
        return affine_scan(diagonal, r, scan=scan)

    def going(carry):
        _, _, settled, count = carry
        return ~settled & (count < budget)

    def sweep(carry):
        x, _, _, count = carry
        r = b - matvec(x)
        broken = since_reset(~jnp.isfinite(r).all(1), starts)
        r = jnp.where(jnp.isfinite(r), r, 0)
        size = jnp.maximum(jnp.abs(x), jnp.where(jnp.isfinite(b), jnp.abs(b), 0))
        small = jnp.abs(r).max(1) <= rtol * lax.cummax(size.max(1))
        new = x + correction(r)
        # Iterates are finite, so that what will not last cannot spread.
        new = jnp.where(jnp.isfinite(new), new, x)
        return new, broken, (small | broken).all(), count + 1

    x = correction(jnp.where(jnp.isfinite(b), b, 0))
    x = jnp.where(jnp.isfinite(x), x, 0)
    none = jnp.zeros(b.shape[0], bool)
    carry = (x, none, jnp.array(False), jnp.array(0))
    x, broken, settled, _ = lax.while_loop(going, sweep, carry)
    # What is not finite, in `b` or in a product, is so until the chain starts anew.
    return jnp.where(broken[:, None], jnp.nan, x), settled


def _diagonal(product, like, resets):
    """The diagonals of the Jacobians, as far as they are known for certain.

    The mean of `v * (A v)` over random signs `v` is the diagonal, and their spread says
    how far the mean of a few can be trusted. An estimate that is too large makes the
    iteration grow before it converges, and one that is too small costs some sweeps: so
    it is taken towards zero by three standard errors, pooled over time. Every time has
    signs of its own, or else a few entries would look certain by chance throughout.

    Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", Applied
    Numerical Mathematics, 2007.
    """
    bits = _random_bits(like.shape)

    def probe(bit):
        v = jnp.where(bits >> bit & 1, 1, -1).astype(like.dtype)
        return v * product(v)

    found = lax.map(probe, jnp.arange(_PROBES, dtype=bits.dtype))
    found = jnp.where(jnp.isfinite(found), found, 0)
    mean = found.mean(0)
    spread = jnp.var(found, 0, ddof=1).mean(0, keepdims=True) / _PROBES
    sure = jnp.maximum(jnp.abs(mean) - _DOUBT * jnp.sqrt(spread), 0)
    # No longer than one, so that products of many stay bounded.
    d = jnp.sign(mean) * jnp.minimum(sure, 1)
    return d if resets is None else jnp.where(along_time(resets, d), 0, d)


def _random_bits(shape):
    """32 random bits for each entry, the same in every run.

    A hash of the number of the entry, by shifts and odd factors: cheaper than what
    `jax.random` would make.
    """
    x = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    for shift, factor in ((16, 0x9E3779B1), (15, 0x85EBCA77), (13, 0xC2B2AE3D)):
        x = (x ^ x >> shift) * jnp.uint32(factor)
    return x ^ x >> 16
