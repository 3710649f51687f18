import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
import optimistix as optx
from equinox import AbstractVar
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from ._certificate import Certificate, certify, where
from ._chain import Chain
from ._check import checked_count, checked_tolerance
from ._custom_types import State
from ._finish import is_unstable
from ._growth import lyapunov_exponent
from ._measure import max_residual
from ._patience import Watch, watched
from ._report import has_converged, report_finished, report_sweeps
from ._result import fail_if, leaf_of, RESULTS
from ._scan import AbstractScan
from ._update import advance, SweepState


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
      Where a chain has resets, that is said of a segment, and the others go on.
    """

    # One number, as in Optimistix, or one for each entry of a state.
    rtol: AbstractVar[ArrayLike]  # pyright: ignore[reportIncompatibleVariableOverride]
    atol: AbstractVar[ArrayLike]  # pyright: ignore[reportIncompatibleVariableOverride]
    scan: AbstractVar[str | AbstractScan]
    chunk: AbstractVar[int | None]
    # Whether the `A_t` are the whole Jacobian, at every iterate: an update is a Newton
    # step then, and needs no other to vouch for it.
    newton: ClassVar[bool] = False
    # What holds the matrices back, if anything: an `AbstractDamping`. It has no
    # annotation, so that a subclass may have a field of this name where it likes.
    damping = None

    def __check_init__(self):
        checked_tolerance("rtol", self.rtol, None)
        checked_tolerance("atol", self.atol, None)
        checked_count("chunk", self.chunk)

    @abc.abstractmethod
    def transition(
        self, step: Callable[[State, Any], State], z: State, x: Any
    ) -> tuple[State, Float[Array, "..."] | None]:
        """`step(z, x)` and the `A_t` that goes with it, at one time.

        **Arguments:**

        - `step`: maps a state `(n,)` and an input to the next state `(n,)`;
            [`parafix.core.jax.jacobian`][] gives its Jacobian.
        - `z`: shape `(n,)`, the state before this time in the current iterate.
        - `x`: the input at this time.

        **Returns:**

        The next state `(n,)` and `A_t`: dense `(n, n)`, diagonal `(n,)`, in the form of
        the structure of `step`, or `None` for zero.
        """

    @abc.abstractmethod
    def num_linear(self, size: int) -> int:
        """How many Jacobian-vector products `transition` takes.

        **Arguments:**

        - `size`: how many a whole Jacobian takes: `n`, unless a structure is declared.
        """

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        # Optimistix asks every solver for one.
        return optx.max_norm

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        del fn, y, args, f_struct, aux_struct, tags
        problem, none = options["problem"], jnp.array(0)
        certificate = Certificate.start(problem, options["error"])
        memory = None if self.damping is None else self.damping.init(problem.init)
        resets = problem.resets
        dead = None if resets is None else jnp.zeros_like(resets)
        watch = None if options["patience"] is None else Watch.start()
        no = jnp.array(False)
        return SweepState(none, no, none, none, certificate, memory, dead, watch)

    def step(self, fn, y, args, options, state, tags):
        del fn, args, tags
        problem = options["problem"]
        y, state = advance(self, problem, y, state, options)
        if state.watch is not None:
            prefix, steps = state.prefix, state.num_steps
            watch = watched(
                self, problem, y, state.watch, prefix, steps, options["patience"]
            )
            state = eqx.tree_at(lambda s: s.watch, state, watch)
        return y, state, None

    def terminate(self, fn, y, args, options, state, tags):
        del fn, args, options, tags
        ended = has_converged(state, y.shape[0]) | state.nonfinite
        if state.watch is not None:
            ended = ended | state.watch.hopeless
        return ended, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        del fn, args, tags, result
        problem: Chain = options["problem"]
        length, whole = problem.length, problem.structure.num_linear(problem.size)
        y, state, certificate, count = _certified(self, problem, y, state, options)
        # Newton's method evaluates once more for the residual, without a Jacobian.
        evals = state.num_steps + state.num_looks + count + int(self.newton)
        if options["fallback"]:
            y, certificate, report = report_finished(
                self, problem, y, state, certificate, options
            )
            # The loop, and the certificate of what it has computed.
            evals = evals + jnp.where(report.start < length, 2, 0)
            count = count + jnp.where(report.start < length, 1, 0)
        else:
            report = report_sweeps(problem, y, state, certificate)
        end = report.end
        if options["throw"]:
            # On a number that the states depend on: they would be copied.
            leaf = leaf_of(report.entry, problem.leaves)
            growth = lax.cond(
                eqxi.unvmap_any(report.result != RESULTS.successful),
                lambda: lyapunov_exponent(problem, y, report.prefix, self.chunk),
                lambda: jnp.full((), jnp.nan, y.dtype),
            )
            end = fail_if(end, report.result, problem, report.prefix, leaf, growth)
        gone = jnp.arange(length) >= end
        if report.dead is not None:
            gone = gone | report.dead
        y = jnp.where(gone[:, None], jnp.nan, y)
        stats = {
            "num_steps": state.num_steps,
            "num_evals": evals,
            "num_linear": state.num_steps * self.num_linear(whole) + count * whole,
            "residual": certificate.residual,
            "converged_prefix": report.prefix,
            "error": certificate.error,
            "entry": report.entry,
            "result": report.result,
            "sequential_from": report.start,
        }
        return y, aux, stats


def _certified(solver, problem, z, state, options):
    """`z`, its certificate, and how many whole Jacobians that took."""

    def certified(z, dead):
        return certify(
            problem,
            z,
            options["error"],
            solver.rtol,
            solver.atol,
            solver.scan,
            solver.chunk,
            dead,
        )

    if not solver.newton:
        return _refine(solver, problem, z, state, options, certified)
    # The sweep that confirmed `z` has done it, so only failures are looked at again.
    sure = state.prefix == problem.length
    certificate = lax.cond(
        eqxi.unvmap_all(sure),
        lambda z: state.certificate,
        lambda z: certified(z, state.dead),
        z,
    )
    certificate = where(sure, state.certificate, certificate)
    # Nothing depends on it but what is reported, so it costs those who ask.
    residual = max_residual(problem(z), z, solver.rtol, solver.atol)
    certificate = eqx.tree_at(lambda c: c.residual, certificate, residual)
    return z, state, certificate, jnp.where(sure, 0, 1)


def _refine(solver, problem, z, state, options, certified):
    """Sweeps on until the Newton step of `z` is within tolerance too."""
    length, budget = problem.length, options["max_steps"]

    def unfinished(carry):
        _, state, certificate, _, _ = carry
        # Of a chain that is not finite, what precedes that is to be right.
        right = jnp.where(
            state.nonfinite,
            certificate.near >= state.prefix,
            (certificate.newton <= 1) | is_unstable(problem, certificate),
        )
        may = has_converged(state, length) | state.nonfinite
        return may & ~right & (state.num_steps < jnp.minimum(budget, length))

    def body(carry):
        z, state, certificate, factor, count = carry
        # The largest step may be one that is not finite.
        excess = jnp.nan_to_num(certificate.newton, nan=1e6, posinf=1e6)
        factor = factor / (2 * jnp.clip(excess, 1, 1e6))
        tight = eqx.tree_at(
            lambda s: (s.rtol, s.atol),
            solver,
            (solver.rtol * factor, solver.atol * factor),
        )

        def moving(carry):
            _, state = carry
            going = ~has_converged(state, length) & ~state.nonfinite
            return going & (state.num_steps < budget)

        def sweep(carry):
            z, state = carry
            return advance(tight, problem, z, state, options)

        state = eqx.tree_at(lambda s: s.prefix, state, jnp.array(0))
        z, state = lax.while_loop(moving, sweep, (z, state))
        return z, state, certified(z, state.dead), factor, count + 1

    certificate = certified(z, state.dead)
    carry = (z, state, certificate, jnp.ones((), z.dtype), jnp.array(1))
    z, state, certificate, _, count = lax.while_loop(unfinished, body, carry)
    return z, state, certificate, count
