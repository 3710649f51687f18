import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
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
from ._result import fail_if, leaf_of, RESULTS
from ._scan import AbstractScan


class ErrorEstimate(eqx.Module):
    """How far rounding may have carried the solution, carried along a chain.

    Rounding perturbs every step by about `eps |z_t|`, and the chain propagates it:
    `e_t = A_t e_{t-1} + eps |z_t| s_t` with signs `s_t`. The estimate is
    `max_t |e_t| / max_t |z_t|`.
    """

    last: State
    error: FloatScalar
    scale: FloatScalar
    # The Newton step of the last state: how far it is from its true value.
    step: State

    @classmethod
    def zero(cls, init: State) -> "ErrorEstimate":
        zero = jnp.zeros((), init.dtype)
        return cls(jnp.zeros_like(init), zero, zero, jnp.zeros_like(init))

    @property
    def value(self) -> FloatScalar:
        relative = self.error / self.scale
        return jnp.where(self.error == 0, 0, relative)


class _SweepState(eqx.Module):
    # All about the iterate that entered the last sweep.
    prefix: IntScalar
    nonfinite: BoolScalar
    num_steps: IntScalar


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
    - It has failed for good when `r` and `d` are within tolerance at all times before
      `t`, and `f_t` is not finite: then the sequential program returns that value too.
    """

    # One number, as in Optimistix, or one for each entry of a state.
    rtol: AbstractVar[ArrayLike]  # pyright: ignore[reportIncompatibleVariableOverride]
    atol: AbstractVar[ArrayLike]  # pyright: ignore[reportIncompatibleVariableOverride]
    scan: AbstractVar[str | AbstractScan]
    chunk: AbstractVar[int | None]

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
        del fn, y, args, options, f_struct, aux_struct, tags
        return _SweepState(jnp.array(0), jnp.array(False), jnp.array(0))

    def step(self, fn, y, args, options, state, tags):
        del fn, args, tags
        z, prefix, nonfinite = _sweep(self, options["problem"], y)
        return z, _SweepState(prefix, nonfinite, state.num_steps + 1), None

    def terminate(self, fn, y, args, options, state, tags):
        del fn, args, options, tags
        return _converged(state, y.shape[0]) | state.nonfinite, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        del fn, args, tags, result
        problem: Chain = options["problem"]
        length = problem.length
        y, state, certificate = _refine(self, problem, y, state, options)
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
        suffix = state.nonfinite & (jnp.arange(length) >= prefix)
        y = jnp.where(suffix[:, None], jnp.nan, y)
        if options["throw"]:
            leaf = leaf_of(entry, problem.leaves)
            y = fail_if(y, result, problem, prefix, leaf)
        stats = {
            "num_steps": state.num_steps,
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


def _refine(solver, problem, z, state, options):
    """Certifies `z`, and sweeps on until its Newton step is within tolerance too."""
    length, budget = problem.length, options["max_steps"]

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

    def unfinished(carry):
        _, state, certificate, _ = carry
        may = _converged(state, length) & ~state.nonfinite
        may = may & (state.num_steps < jnp.minimum(budget, length))
        return may & ~(certificate.newton <= 1) & ~_is_unstable(problem, certificate)

    def body(carry):
        z, state, certificate, factor = carry
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
            z, prefix, nonfinite = _sweep(tight, problem, z)
            return z, _SweepState(prefix, nonfinite, state.num_steps + 1)

        state = _SweepState(jnp.array(0), jnp.array(False), state.num_steps)
        z, state = lax.while_loop(moving, sweep, (z, state))
        return z, state, certified(z), factor

    carry = (z, state, certified(z), jnp.ones((), z.dtype))
    z, state, certificate, _ = lax.while_loop(unfinished, body, carry)
    return z, state, certificate


def _sweep(solver, problem, z):
    """One sweep: the next iterate, and what is known of the entering one."""
    length = problem.length
    index = jnp.arange(length)

    def body(carry, elements):
        last, broken, worst = carry
        lag, z, xs, index = elements
        f, a = jax.vmap(lambda z, x: solver.transition(problem.step, z, x))(lag, xs)
        # Otherwise `f` is evaluated once more inside `r`, with other rounding, and `r`
        # is not zero where `z` is exact.
        f = lax.optimization_barrier(f)
        r = f - z
        d = r if a is None else _propagate(solver.scan, a, r, last, index)
        new = f + (d - r)

        broken = jnp.minimum(broken, _first(~jnp.isfinite(new), index, length))
        quarantine = (index >= broken)[:, None]
        new = jnp.where(quarantine, jnp.where(jnp.isfinite(f), f, z), new)
        d = jnp.where(quarantine, new - z, d)
        tol = _tolerance(solver.rtol, solver.atol, z)
        within = (jnp.abs(r) <= tol) & (jnp.abs(d) <= tol)
        # One reduction for both the first entry that is not within tolerance and
        # whether `f` is finite at that time: even numbers where it is not.
        number = 2 * index[:, None] + jnp.isfinite(f).astype(index.dtype)
        number = jnp.where(within, 2 * length + 1, number)
        return (d[-1], broken, jnp.minimum(worst, jnp.min(number))), new

    (_, _, worst), new = scan_chunks(
        body,
        (jnp.zeros_like(problem.init), jnp.array(length), jnp.array(2 * length + 1)),
        (problem.lag(z), z, problem.xs, index),
        length,
        chunk_size(solver.chunk, length, problem.size),
    )
    return new, worst // 2, worst % 2 == 0


def max_residual(f: States, z: States, rtol: Any, atol: Any) -> FloatScalar:
    """`max |f - z|` in units of the tolerance."""
    return max_abs(_ratio(f - z, _tolerance(rtol, atol, z)))


def _ratio(x, tol):
    # 0 / 0 is an entry that is met exactly at zero tolerance.
    return jnp.where(x == 0, 0, x / tol)


def _tolerance(rtol, atol, z):
    rtol, atol = (jnp.atleast_1d(jnp.asarray(x, z.dtype))[None] for x in (rtol, atol))
    return atol + rtol * jnp.abs(z)


def _first(where, index, length):
    """The first time at which `where`, of shape `(T, n)`, is true anywhere."""
    # Over both axes at once: a reduction over the last axis alone is slow on a CPU.
    return jnp.min(jnp.where(where, index[:, None], length))


def _propagate(scan, a, b, last, index):
    """`d_t = a_t d_{t-1} + b_t` from `last`, and from zero where `index` is zero."""
    start = (index == 0).reshape(-1, *(1,) * (a.ndim - 1))
    # Nothing precedes the first time; masking keeps a NaN there from `NaN * 0`.
    return affine_scan(jnp.where(start, 0, a), b, last, scan=scan)


class Certificate(eqx.Module):
    """What `certify` finds: `residual` is in units of the tolerance.

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


def certify(
    problem: Chain,
    z: States,
    error: ErrorEstimate,
    rtol: Any,
    atol: Any,
    scan: str | AbstractScan = "auto",
    chunk: int | None = None,
) -> Certificate:
    """The residual at `z`, and how far rounding is carried.

    One more evaluation, with the whole Jacobian whatever the solver used. `error` is
    that of what precedes the chain.
    """
    length, size = problem.length, problem.size
    eps = jnp.asarray(problem.eps, z.dtype)[None]

    def body(sofar, elements):
        lag, z, xs, index = elements
        f, a = jax.vmap(lambda z, x: jacobian(problem.step, z, x))(lag, xs)
        tol = _tolerance(rtol, atol, z)
        residual = max_residual(f, z, rtol, atol)
        # A derivative that is not finite says nothing about rounding.
        a = jnp.where(jnp.isfinite(a), a, 0)
        position = problem.offset + problem.stride * index
        rounding = eps * z * _signs(position, size).astype(z.dtype)
        last = sofar.error.last
        # Where a chain starts, both are zero.
        fresh = jnp.where(last.any() | sofar.error.step.any(), -1, index)
        e = _propagate(scan, a, rounding, last, fresh)
        largest = jnp.maximum(sofar.error.error, max_abs(e))
        d = _propagate(scan, a, f - z, sofar.error.step, fresh)
        distance = _ratio(d, tol + 10 * largest)
        first = _first(~(jnp.abs(e) <= tol), index, length)
        new = (first < length) & (sofar.prefix == length)
        entry = _worst(e[jnp.minimum(first - index[0], e.shape[0] - 1)])
        return (
            Certificate(
                jnp.maximum(sofar.residual, residual),
                jnp.maximum(sofar.newton, max_abs(distance)),
                jnp.minimum(
                    sofar.near, _first(~(jnp.abs(distance) <= 1), index, length)
                ),
                ErrorEstimate(
                    e[-1],
                    largest,
                    jnp.maximum(sofar.error.scale, max_abs(z)),
                    d[-1],
                ),
                jnp.where(new, first, sofar.prefix),
                jnp.where(new, entry, sofar.entry),
            ),
            None,
        )

    zero, end = jnp.zeros((), z.dtype), jnp.array(length)
    start = Certificate(zero, zero, end, error, end, jnp.array(0))
    certificate, _ = scan_chunks(
        body,
        start,
        (problem.lag(z), z, problem.xs, jnp.arange(length)),
        length,
        chunk_size(chunk, length, size),
    )
    return certificate


def _signs(position, size):
    # A fixed sequence without period that any recurrence could resonate with: bits of
    # a linear congruential hash of the entry's number.
    entry = position[:, None] * size + jnp.arange(size)[None]
    entry = entry.astype(jnp.uint32)
    return jnp.where((entry * 1103515245 + 12345) & 0x10000, 1, -1)


def max_abs(x):
    """`max |x|`; NaN if there is one.

    Non-negative floats are ordered as their bits are, and NaNs above infinity. The
    maximum of integers vectorises on a CPU, where that of floats does not.
    """
    bits = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[x.dtype.itemsize]
    largest = jnp.max(lax.bitcast_convert_type(jnp.abs(x), bits))
    return lax.bitcast_convert_type(largest, x.dtype)


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
