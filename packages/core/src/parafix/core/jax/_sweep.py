import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import optimistix as optx
from equinox import AbstractVar
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from ._affine_scan import affine_scan
from ._chain import Chain, chunk_size, jacobian, scan_chunks
from ._check import checked_count, checked_tolerance
from ._custom_types import (
    BoolScalar,
    FloatScalar,
    IntScalar,
    State,
    States,
)
from ._measure import max_abs, ratio, tolerance
from ._result import fail_if, leaf_of, RESULTS
from ._scan import AbstractScan


# How many times a reduction takes together, and for how long nothing may be rounded.
_STRETCH = 32


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
    entry of the state for which it is worst there.
    """

    residual: FloatScalar
    newton: FloatScalar
    near: IntScalar
    error: ErrorEstimate
    prefix: IntScalar
    entry: IntScalar

    @classmethod
    def start(cls, problem: Chain, error: ErrorEstimate) -> "Certificate":
        """Before anything was looked at; `error` is that of what precedes the chain."""
        zero, end = jnp.zeros((), problem.init.dtype), jnp.array(problem.length)
        return cls(zero, zero, end, error, end, jnp.array(0))


class _SweepState(eqx.Module):
    # All about the iterate that entered the last sweep.
    prefix: IntScalar
    nonfinite: BoolScalar
    num_steps: IntScalar
    # Of Newton's method, and once it has converged; otherwise of no meaning.
    certificate: Certificate


class AbstractSweep(optx.AbstractFixedPointSolver):
    """Solves a chain by sweeps that treat all times at once.

    With `f` and a matrix `A_t` for every time, one sweep takes `z` to

    `z'_t = f(z)_t + A_t (z'_{t-1} - z_{t-1})`,

    which is one affine scan. Subclasses say what `A_t` is, and nothing else: the
    Jacobian gives Newton's method (DEER), its diagonal quasi-DEER, zero Jacobi, the
    identity Picard. Whatever `A_t`, the first `k` states are final after `k` sweeps,
    since `z_{t-1}` being right makes the correction zero and `z'_t = f(z)_t` right.

    - A sweep works in `f`, `r = f - z` and `d = z' - z`, so that rounding scales with
      the update and the correction is exactly zero on the exact prefix.
    - From the first time at which `z'` is not finite, it is replaced by `f`, and where
      `f` is not finite by `z`: iterates are always finite, and a NaN ahead cannot reach
      the times before it.
    - A solve has converged when `|r|` and `|d|` are both within `atol + rtol |z|` at
      all times, and so is the Newton step there: where a chain forgets slowly, small
      residuals add up, and a sweep without derivatives does not see it. Then it goes
      on, with tolerances as much smaller as the step is too large.
    - How far rounding is carried is looked at, too: an unstable chain has no solution
      that another order of the same operations would confirm.
    - It has failed for good when `r` and `d` are within tolerance at all times before
      `t`, and `f_t` is not finite: then the sequential program returns that value too.
    """

    # One number, as in Optimistix, or one for each entry of a state.
    rtol: AbstractVar[ArrayLike]  # pyright: ignore[reportIncompatibleVariableOverride]
    atol: AbstractVar[ArrayLike]  # pyright: ignore[reportIncompatibleVariableOverride]
    scan: AbstractVar[str | AbstractScan]
    chunk: AbstractVar[int | None]
    # Whether `transition` returns the whole Jacobian, at every iterate: an update is a
    # Newton step then, and needs no other to vouch for it.
    newton: ClassVar[bool] = False

    def __check_init__(self):
        checked_tolerance("rtol", self.rtol, None)
        checked_tolerance("atol", self.atol, None)
        checked_count("chunk", self.chunk)

    @abc.abstractmethod
    def transition(
        self, step: Callable[[State, Any], State], z: State, x: Any
    ) -> tuple[State, Float[Array, "n n"] | Float[Array, " n"] | None]:
        """`step(z, x)` and the `A_t` that goes with it, at one time.

        **Arguments:**

        - `step`: maps a state `(n,)` and an input to the next state `(n,)`.
        - `z`: shape `(n,)`, the state before this time in the current iterate.
        - `x`: the input at this time.

        **Returns:**

        The next state `(n,)` and `A_t`: dense `(n, n)`, diagonal `(n,)`, or `None` for
        zero.
        """

    @abc.abstractmethod
    def num_linear(self, size: int) -> int:
        """How many Jacobian-vector products `transition` takes for `size` entries."""

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        # Optimistix asks every solver for one.
        return optx.max_norm

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        del fn, y, args, f_struct, aux_struct, tags
        certificate = Certificate.start(options["problem"], options["error"])
        return _SweepState(jnp.array(0), jnp.array(False), jnp.array(0), certificate)

    def step(self, fn, y, args, options, state, tags):
        del fn, args, tags
        return *_advance(self, options["problem"], y, state, options), None

    def terminate(self, fn, y, args, options, state, tags):
        del fn, args, options, tags
        return _converged(state, y.shape[0]) | state.nonfinite, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        del fn, args, tags, result
        problem: Chain = options["problem"]
        length = problem.length
        y, state, certificate, certified = _certified(self, problem, y, state, options)
        converged = _converged(state, length)
        result = RESULTS.where(
            certificate.newton <= 1, RESULTS.successful, RESULTS.stalled
        )
        unstable = _is_unstable(problem, certificate)
        result = RESULTS.where(unstable, RESULTS.ill_conditioned, result)
        result = RESULTS.where(converged, result, RESULTS.max_steps_reached)
        result = RESULTS.where(state.nonfinite, RESULTS.nonfinite, result)
        # The prefix is about the iterate that entered the last sweep. The one that is
        # returned has one more state within tolerance, and at least `num_steps` exact.
        prefix = jnp.maximum(state.prefix + 1, state.num_steps)
        prefix = jnp.where(state.nonfinite, state.prefix, jnp.minimum(prefix, length))
        unstable = result == RESULTS.ill_conditioned
        prefix = jnp.where(unstable, certificate.prefix, prefix)
        near = jnp.minimum(certificate.near, prefix)
        prefix = jnp.where(result == RESULTS.stalled, near, prefix)
        entry = jnp.where(unstable, certificate.entry, worst_entry(problem, y, prefix))
        end = jnp.where(state.nonfinite, prefix, length)
        if options["throw"]:
            # On a number that the states depend on: they would be copied.
            leaf = leaf_of(entry, problem.leaves)
            end = fail_if(end, result, problem, prefix, leaf)
        y = jnp.where((jnp.arange(length) >= end)[:, None], jnp.nan, y)
        stats = {
            "num_steps": state.num_steps,
            "num_evals": state.num_steps + certified,
            "residual": certificate.residual,
            "converged_prefix": prefix,
            "error": certificate.error,
            "entry": entry,
            "result": result,
        }
        return y, aux, stats


class Jacobi(AbstractSweep):
    """Jacobi: `A_t = 0`, so `z' = f(z)`. No Jacobian and no scan.

    A sweep is as cheap as it can be; the number of sweeps is the memory length of the
    chain, whatever `T`.
    """

    rtol: ArrayLike
    atol: ArrayLike
    scan: str | AbstractScan = "auto"
    chunk: int | None = None

    def transition(self, step, z, x):
        return step(z, x), None

    def num_linear(self, size):
        del size
        return 0


_sweep_arguments = """**Arguments:**

- `rtol`, `atol`: relative and absolute tolerance: a state `z` is within tolerance if
    the residual and the last update are at most `atol + rtol |z|`, entry by entry.
- `scan`: an [`parafix.core.jax.AbstractScan`][] or a registered name, for the affine
    recurrence inside a sweep; `"auto"` goes by the platform.
- `chunk`: hold Jacobian blocks for this many times at once; `None` decides. It changes
    memory and speed, and the numbers to rounding.
"""
Jacobi.__init__.__doc__ = _sweep_arguments


def _converged(state, length):
    # After `length` sweeps every state is exact, whether or not that was confirmed.
    return (state.prefix == length) | (state.num_steps >= length)


def _is_unstable(problem, certificate):
    return ~(certificate.error.value <= float(problem.eps.max()) ** 0.5)


def _certified(solver, problem, z, state, options):
    """`z`, its certificate, and how many evaluations that took."""

    def certified(z):
        return certify(
            problem,
            z,
            options["error"],
            solver.rtol,
            solver.atol,
            solver.scan,
            solver.chunk,
        )

    if not solver.newton:
        return _refine(solver, problem, z, state, options, certified)
    # The sweep that confirmed `z` has done it, so only failures are looked at again.
    sure = state.prefix == problem.length
    certificate = lax.cond(
        eqxi.unvmap_all(sure), lambda _: state.certificate, certified, z
    )
    certificate = _where(sure, state.certificate, certificate)
    # Nothing depends on it but what is reported, so it costs those who ask.
    residual = max_residual(problem(z), z, solver.rtol, solver.atol)
    certificate = eqx.tree_at(lambda c: c.residual, certificate, residual)
    return z, state, certificate, jnp.where(sure, 1, 2)


def _refine(solver, problem, z, state, options, certified):
    """Sweeps on until the Newton step of `z` is within tolerance too."""
    length, budget = problem.length, options["max_steps"]

    def unfinished(carry):
        _, state, certificate, _, _ = carry
        may = _converged(state, length) & ~state.nonfinite
        may = may & (state.num_steps < jnp.minimum(budget, length))
        return may & ~(certificate.newton <= 1) & ~_is_unstable(problem, certificate)

    def body(carry):
        z, state, certificate, factor, count = carry
        factor = factor / (2 * jnp.clip(certificate.newton, 1, 1e6))
        tight = eqx.tree_at(
            lambda s: (s.rtol, s.atol),
            solver,
            (solver.rtol * factor, solver.atol * factor),
        )

        def moving(carry):
            _, state = carry
            going = ~_converged(state, length) & ~state.nonfinite
            return going & (state.num_steps < budget)

        def sweep(carry):
            z, state = carry
            return _advance(tight, problem, z, state, options)

        state = eqx.tree_at(lambda s: s.prefix, state, jnp.array(0))
        z, state = lax.while_loop(moving, sweep, (z, state))
        return z, state, certified(z), factor, count + 1

    carry = (z, state, certified(z), jnp.ones((), z.dtype), jnp.array(1))
    z, state, certificate, _, count = lax.while_loop(unfinished, body, carry)
    return z, state, certificate, count


def _advance(solver, problem, z, state, options):
    z, prefix, nonfinite, certificate = _sweep(solver, problem, z, options["error"])
    return z, _SweepState(prefix, nonfinite, state.num_steps + 1, certificate)


def _sweep(solver, problem, z, error):
    """One sweep: the next iterate, and what is known of the entering one."""
    length = problem.length
    index = jnp.arange(length)

    def body(carry, elements):
        last, broken, prefix, bad, certificate = carry
        lag, z, xs, index = elements
        f, a = jax.vmap(lambda z, x: solver.transition(problem.step, z, x))(lag, xs)
        # A product that ends `f` may be fused with the subtraction and not be rounded:
        # then `f - z` is not zero where `z` is what `f` was before.
        r = jnp.where(f == z, 0, f - z)
        d = r if a is None else _propagate(solver.scan, a, r, last, index)
        new = f + (d - r)

        broken = jnp.minimum(broken, _first_broken(new, d, a, index, length))
        # (A sum of finite numbers may overflow by itself.)
        quarantine = (index >= broken)[:, None] | ~jnp.isfinite(new)
        new = jnp.where(quarantine, jnp.where(jnp.isfinite(f), f, z), new)
        d = jnp.where(quarantine, new - z, d)
        tol = tolerance(solver.rtol, solver.atol, z)
        within = (jnp.abs(r) <= tol) & (jnp.abs(d) <= tol)
        first = _first(~within, index, length)
        there = f[jnp.minimum(first - index[0], f.shape[0] - 1)]
        bad = jnp.where(first < prefix, ~jnp.isfinite(there).all(), bad)
        prefix = jnp.minimum(prefix, first)
        if solver.newton:
            certificate = _vouch(
                solver,
                problem,
                certificate,
                lag,
                xs,
                z,
                r,
                d,
                tol,
                index,
                prefix == length,
            )
        return (d[-1], broken, prefix, bad, certificate), new

    zero, end = jnp.zeros_like(problem.init), jnp.array(length)
    carry = (zero, end, end, jnp.array(False), Certificate.start(problem, error))
    (_, _, prefix, nonfinite, certificate), new = scan_chunks(
        body,
        carry,
        (problem.lag(z), z, problem.xs, index),
        length,
        chunk_size(solver.chunk, length, problem.size),
    )
    return new, prefix, nonfinite, certificate


def _first_broken(new, d, a, index, length):
    """The first of the times `index` at which `new` is not finite."""
    if a is None:
        return _first(~jnp.isfinite(new), index, length)
    # What is not finite stays so until the end of a scan, and shows there.
    return lax.cond(
        eqxi.unvmap_any(~jnp.isfinite(d[-1]).all()),
        lambda: _first(~jnp.isfinite(new), index, length),
        lambda: jnp.array(length),
    )


def _vouch(solver, problem, sofar, lag, xs, z, r, d, tol, index, within):
    """Takes the certificate of an iterate of Newton's method over the next chunk.

    Both conditions are those of all samples of a `vmap`, so that they stay conditions;
    what a sample gets for which they do not hold is not made use of.
    """
    zero = jnp.zeros((), z.dtype)
    update, scale, rounded = lax.cond(
        eqxi.unvmap_any(within),
        lambda: (max_abs(d), max_abs(z), _is_rounded(r)),
        lambda: (zero, zero, jnp.array(False)),
    )
    scale = jnp.maximum(sofar.error.scale, scale)
    # With loose tolerances, an update says more of them than of rounding.
    small = update <= float(problem.eps.max()) ** 0.5 * scale
    measured = sofar.error.measured & rounded & small
    error = jnp.maximum(sofar.error.error, update)
    error = ErrorEstimate(d[-1], error, scale, sofar.error.step, measured)
    seen = eqx.tree_at(lambda c: c.error, sofar, error)

    def propagate():
        # Forming the Jacobian again costs less than keeping it in every sweep.
        _, a = jax.vmap(lambda z, x: solver.transition(problem.step, z, x))(lag, xs)
        return _carry_rounding(problem, solver.scan, sofar, a, z, tol, index)

    certificate = lax.cond(eqxi.unvmap_any(within & ~measured), propagate, lambda: seen)
    return _where(measured, seen, certificate)


def _is_rounded(r):
    """Whether no entry of `r` is exactly zero for a whole stretch of times."""
    length, size = r.shape
    stretch = min(length, _STRETCH)
    head = length // stretch * stretch
    blocks = (r[:head] != 0).reshape(-1, stretch, size)
    return blocks.any(1).all() & (r[length - stretch :] != 0).any(0).all()


def _carry_rounding(problem, scan, sofar, a, z, tol, index):
    """Takes the estimate of the error over the next chunk."""
    length = problem.length
    # A derivative that is not finite says nothing about rounding.
    a = jnp.where(jnp.isfinite(a), a, 0)
    eps = jnp.asarray(problem.eps, z.dtype)[None]
    position = problem.offset + problem.stride * index
    rounding = eps * z * _signs(position, problem.size).astype(z.dtype)
    e = _propagate(scan, a, rounding, sofar.error.last, _fresh(sofar, index))
    first = _first(~(jnp.abs(e) <= tol), index, length)
    new = (first < length) & (sofar.prefix == length)
    entry = _worst(e[jnp.minimum(first - index[0], e.shape[0] - 1)])
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
        jnp.where(new, first, sofar.prefix),
        jnp.where(new, entry, sofar.entry),
    )


def _fresh(sofar, index):
    # Where a chain starts, both are zero.
    return jnp.where(sofar.error.last.any() | sofar.error.step.any(), -1, index)


def _where(pred, x, y):
    return jax.tree.map(lambda x, y: jnp.where(pred, x, y), x, y)


def max_residual(f: States, z: States, rtol: Any, atol: Any) -> FloatScalar:
    """`max |f - z|` in units of the tolerance."""
    return max_abs(ratio(f - z, tolerance(rtol, atol, z)))


def _first(where, index, length):
    """The first of the times `index` at which `where`, `(T, n)`, is true anywhere."""
    # By stretches: one reduction over everything to a number is slow on a CPU.
    count, stretch = where.shape[0], min(where.shape[0], _STRETCH)
    ends = _stretches(where)
    begin = jnp.where(ends.any(), jnp.argmax(ends), ends.shape[0]) * stretch
    # Beyond the last whole stretch, if none was hit.
    begin = jnp.minimum(begin, count - stretch)
    hit = lax.dynamic_slice_in_dim(where, begin, stretch).any(1)
    return jnp.where(hit.any(), index[0] + begin + jnp.argmax(hit), length)


def _stretches(where):
    """Whether `where`, `(T, n)`, is true anywhere in each whole stretch of times."""
    stretch = min(where.shape[0], _STRETCH)
    head = where.shape[0] // stretch * stretch
    return where[:head].reshape(-1, stretch, where.shape[1]).any((1, 2))


def _propagate(scan, a, b, last, index):
    """`d_t = a_t d_{t-1} + b_t` from `last`, and from zero where `index` is zero."""
    start = (index == 0).reshape(-1, *(1,) * (a.ndim - 1))
    # Nothing precedes the first time; masking keeps a NaN there from `NaN * 0`.
    return affine_scan(jnp.where(start, 0, a), b, last, scan=scan)


def certify(
    problem: Chain,
    z: States,
    error: ErrorEstimate,
    rtol: Any,
    atol: Any,
    scan: str | AbstractScan = "auto",
    chunk: int | None = None,
) -> Certificate:
    """The residual and the Newton step at `z`, and how far rounding is carried.

    One more evaluation, with the whole Jacobian whatever the solver used. `error` is
    that of what precedes the chain.
    """
    length = problem.length

    def body(sofar, elements):
        lag, z, xs, index = elements
        f, a = jax.vmap(lambda z, x: jacobian(problem.step, z, x))(lag, xs)
        r = f - z
        tol = tolerance(rtol, atol, z)
        new = _carry_rounding(problem, scan, sofar, a, z, tol, index)
        a = jnp.where(jnp.isfinite(a), a, 0)
        d = _propagate(scan, a, r, sofar.error.step, _fresh(sofar, index))
        distance = ratio(d, tol + 10 * new.error.error)
        near = _first(~(jnp.abs(distance) <= 1), index, length)
        return (
            eqx.tree_at(
                lambda c: (c.residual, c.newton, c.near, c.error.step),
                new,
                (
                    jnp.maximum(sofar.residual, max_abs(ratio(r, tol))),
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
        (problem.lag(z), z, problem.xs, jnp.arange(length)),
        length,
        chunk_size(chunk, length, problem.size),
    )
    return certificate


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
    previous = jnp.where(t == 0, problem.init, z[t - 1])
    r = jnp.abs(problem.step(previous, x) - z[t])
    return _worst(r)


def _worst(x):
    """Where `x` is largest; NaN is larger than all."""
    return jnp.argmax(jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x)))
