"""What can be said of an iterate of a chain: how right it is, what rounding does."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ._chain import Chain, chunk_size, jacobian, scan_chunks
from ._custom_types import BoolScalar, FloatScalar, IntScalar, State, States
from ._measure import first, max_abs, ratio, rounded_throughout, tolerance
from ._scan import AbstractScan
from ._segments import along_time


class ErrorEstimate(eqx.Module):
    """How far rounding may have carried the solution, carried along a chain.

    Rounding perturbs every step by about `eps |z_t|`, and the chain propagates it:
    `e_t = A_t e_{t-1} + eps |z_t| s_t` with signs `s_t`. The estimate is
    `max_t |e_t| / max_t |z_t|`.

    The last update of Newton's method is the same recurrence, with the residuals on
    the right. Where these hold rounding of their own all along, it is the estimate
    already; where they are exactly zero (what was fed back is exact, or a number is
    only passed on), nothing can be seen in it.
    """

    last: State
    error: FloatScalar
    scale: FloatScalar
    # The Newton step of the last state: how far it is from its true value.
    step: State
    # Whether so far the updates have been the estimate.
    measured: BoolScalar

    @classmethod
    def zero(cls, init: State) -> "ErrorEstimate":
        zero, none = jnp.zeros((), init.dtype), jnp.zeros_like(init)
        return cls(none, zero, zero, none, jnp.array(True))

    @property
    def value(self) -> FloatScalar:
        relative = self.error / self.scale
        return jnp.where(self.error == 0, 0, relative)


class Certificate(eqx.Module):
    """What can be said of an iterate; `residual` is in units of the tolerance.

    `newton` is the largest Newton step, in units of the tolerance and of what rounding
    alone may cause; `near` the first time at which it is above one. `prefix` is the
    first time at which rounding may have carried `z` beyond tolerance, and `entry` the
    entry of the state for which it is worst there. `tiny` says whether the updates of
    Newton's method were of the size of rounding, so that `z` was what they led to.
    """

    residual: FloatScalar
    newton: FloatScalar
    near: IntScalar
    error: ErrorEstimate
    prefix: IntScalar
    entry: IntScalar
    tiny: BoolScalar

    @classmethod
    def start(cls, problem: Chain, error: ErrorEstimate) -> "Certificate":
        """Before anything was looked at; `error` is that of what precedes the chain."""
        zero, end = jnp.zeros((), problem.init.dtype), jnp.array(problem.length)
        return cls(zero, zero, end, error, end, jnp.array(0), jnp.array(True))


def certify(
    problem: Chain,
    z: States,
    error: ErrorEstimate,
    rtol: Any,
    atol: Any,
    scan: str | AbstractScan = "auto",
    chunk: int | None = None,
    dead: Bool[Array, " T"] | None = None,
) -> Certificate:
    """The residual and the Newton step at `z`, and how far rounding is carried.

    One more evaluation, with the whole Jacobian whatever the solver used. `error` is
    that of what precedes the chain. Of the times `dead`, which hold no number, only the
    residual is looked at.
    """
    length = problem.length

    def body(sofar, elements):
        lag, z, xs, index, resets, dead = elements
        f, a = jax.vmap(lambda z, x: jacobian(problem.step, z, x))(lag, xs)
        r = f - z
        tol = tolerance(rtol, atol, z)
        residual = max_abs(ratio(r, tol))
        part = Part(z, r, tol, index, resets).without(dead)
        new = _carry_rounding(problem, scan, sofar, part, a)
        a = jnp.where(jnp.isfinite(a), a, 0)
        fresh = _fresh(sofar, index)
        d = propagate(problem, scan, a, part.r, sofar.error.step, fresh, part.resets)
        tol = part.tol
        distance = ratio(d, tol + 10 * new.error.error)
        near = first(~(jnp.abs(distance) <= 1), index, length)
        return (
            eqx.tree_at(
                lambda c: (c.residual, c.newton, c.near, c.error.step),
                new,
                (
                    jnp.maximum(sofar.residual, residual),
                    jnp.maximum(sofar.newton, max_abs(distance)),
                    jnp.minimum(sofar.near, near),
                    d[-1],
                ),
            ),
            None,
        )

    certificate, _ = scan_chunks(
        body,
        Certificate.start(problem, error),
        (problem.lag(z), z, problem.xs, jnp.arange(length), problem.resets, dead),
        length,
        chunk_size(chunk, length, problem.num_entries),
    )
    return certificate


class Part(NamedTuple):
    """What a sweep knows of a chunk of times: the iterate, `f - z`, what is allowed."""

    z: States
    r: States
    tol: States
    times: Int[Array, " T"]
    resets: Bool[Array, " T"] | None = None

    def without(self, dead: Bool[Array, " T"] | None) -> "Part":
        """All times but `dead`, which become steps from zero to zero."""
        if dead is None:
            return self
        z, r, tol = (
            jnp.where(dead[:, None], fill, x)
            for fill, x in ((0, self.z), (0, self.r), (1, self.tol))
        )
        resets = dead if self.resets is None else self.resets | dead
        return Part(z, r, tol, self.times, resets)


def vouch(
    problem: Chain,
    scan: str | AbstractScan,
    sofar: Certificate,
    part: Part,
    d: States,
    blocks: Callable[[], Float[Array, "T ..."]],
    within: BoolScalar,
    rtol: Any,
) -> Certificate:
    """Takes the certificate of an iterate of Newton's method over the next chunk.

    `d` is the update, `blocks` forms the Jacobian, and `within` says whether all was
    within tolerance so far. The conditions here are those of all samples of a `vmap`,
    so that they stay conditions; what a sample gets for which they do not hold is not
    made use of.
    """
    z = part.z
    zero = jnp.zeros((), z.dtype)
    # The state that is returned is one Newton step further.
    sofar = eqx.tree_at(lambda c: c.error.step, sofar, jnp.zeros_like(problem.init))
    no = jnp.array(False)
    update, scale, rounded, tiny = lax.cond(
        eqxi.unvmap_any(within),
        lambda: (
            max_abs(d),
            max_abs(z),
            rounded_throughout(part.r),
            _is_rounding(problem, d, part.tol, rtol),
        ),
        lambda: (zero, zero, no, no),
    )
    scale = jnp.maximum(sofar.error.scale, scale)
    # With loose tolerances, an update says more of them than of rounding.
    small = update <= float(problem.eps.max()) ** 0.5 * scale
    measured = sofar.error.measured & rounded & small
    error = jnp.maximum(sofar.error.error, update)
    error = ErrorEstimate(d[-1], error, scale, sofar.error.step, measured)
    sofar = eqx.tree_at(lambda c: c.tiny, sofar, sofar.tiny & tiny)
    seen = eqx.tree_at(lambda c: c.error, sofar, error)
    certificate = lax.cond(
        eqxi.unvmap_any(within & ~measured),
        # Forming the Jacobian again costs less than keeping it in every sweep.
        lambda: _carry_rounding(problem, scan, sofar, part, blocks()),
        lambda: seen,
    )
    return where(measured, seen, certificate)


def _is_rounding(problem, d, tol, rtol):
    """Whether all of `d` is of the size of rounding."""
    eps = jnp.asarray(problem.eps, d.dtype)[None]
    rtol = jnp.broadcast_to(jnp.asarray(rtol, d.dtype), d.shape)
    # `tol / rtol` is `|z|`, and what takes its place near zero.
    return ((jnp.abs(d) * rtol < 16 * eps * tol) & (rtol > 0)).all()


def _carry_rounding(problem, scan, sofar, part, a):
    """Takes the estimate of the error over the next chunk."""
    z, _, tol, index, resets = part
    length = problem.length
    # A derivative that is not finite says nothing about rounding.
    a = jnp.where(jnp.isfinite(a), a, 0)
    eps = jnp.asarray(problem.eps, z.dtype)[None]
    position = problem.offset + problem.stride * index
    rounding = eps * z * _signs(position, problem.size).astype(z.dtype)
    fresh = _fresh(sofar, index)
    e = propagate(problem, scan, a, rounding, sofar.error.last, fresh, resets)
    lost = first(~(jnp.abs(e) <= tol), index, length)
    new = (lost < length) & (sofar.prefix == length)
    entry = _worst(e[jnp.minimum(lost - index[0], e.shape[0] - 1)])
    return Certificate(
        sofar.residual,
        sofar.newton,
        sofar.near,
        ErrorEstimate(
            e[-1],
            jnp.maximum(sofar.error.error, max_abs(e)),
            jnp.maximum(sofar.error.scale, max_abs(z)),
            sofar.error.step,
            jnp.array(False),
        ),
        jnp.where(new, lost, sofar.prefix),
        jnp.where(new, entry, sofar.entry),
        sofar.tiny,
    )


def _fresh(sofar, index):
    # Where a chain starts, both are zero.
    return jnp.where(sofar.error.last.any() | sofar.error.step.any(), -1, index)


def propagate(problem, scan, a, b, last, index, resets=None):
    """`d_t = a_t d_{t-1} + b_t` from `last`, and from zero where `index` is zero."""
    return problem.structure.solve(opened(a, index), b, last, scan, resets)


def opened(a, index, resets=None):
    """`a`, and zero where `index` is zero and at resets."""
    start = index == 0 if resets is None else (index == 0) | resets
    # Nothing precedes the first time; masking keeps a NaN there from `NaN * 0`.
    return jnp.where(along_time(start, a), 0, a)


def _signs(position, size):
    # A fixed sequence without period that any recurrence could resonate with: bits of
    # a linear congruential hash of the entry's number.
    entry = position[:, None] * size + jnp.arange(size)[None]
    entry = entry.astype(jnp.uint32)
    return jnp.where((entry * 1103515245 + 12345) & 0x10000, 1, -1)


def worst_entry(problem, z, prefix):
    """Which entry of the state at `prefix` is the worst: first NaN, then residual."""
    t = jnp.minimum(prefix, problem.length - 1)
    x = jax.tree.map(lambda x: x[t], problem.xs)
    r = jnp.abs(problem.step(problem.before(z, t), x) - z[t])
    return _worst(r)


def _worst(x):
    """Where `x` is largest; NaN is larger than all."""
    return jnp.argmax(jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x)))


def where(pred, x, y):
    return jax.tree.map(lambda x, y: jnp.where(pred, x, y), x, y)
