"""What stands in the place of Diffrax's loop over the steps."""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from parafix.core.jax import RESULTS, Sequential, structure_of

from ._auto import choose
from ._carry import Layout
from ._ode_grid import Grid, is_sub
from ._ode_guess import delayed, guess_of
from ._ode_save import Path
from ._ode_step import first_failure, GuardedStep, Step
from ._scan import scan


class ParallelInTime(diffrax.AbstractAdjoint):
    """Solves all steps at once, where Diffrax takes one after the other.

    `diffrax.diffeqsolve` leaves its loop to its `adjoint`, which says how it is
    differentiated. Everything around the loop stays Diffrax's own: checks, dtypes, the
    direction of time, the buffers of `SaveAt`, the solution.
    """

    length: int = eqx.field(static=True)
    guess: PyTree
    # The keyword arguments of `scan`.
    options: dict[str, Any]

    def loop(
        self,
        *,
        args,
        terms,
        solver,
        stepsize_controller,
        saveat,
        t0,
        t1,
        init_state,
        throw,
        **unused,
    ) -> Any:
        """Diffrax's last state, and parafix's statistics."""
        del unused
        state, length = init_state, self.length
        subs = jax.tree.leaves(saveat.subs, is_leaf=is_sub)
        if length == 0:
            none = jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), state.y)
            path = Path(_no_steps(t0), t0, state.y, none, lambda ts: _repeat(state, ts))
            saved = _save(saveat, state, path, args)
            return dataclasses.replace(state, **saved), _empty_stats()

        grid = Grid.of(
            stepsize_controller, state.controller_state, t0, t1, state.tnext, length
        )
        step = Step.of(terms, solver, args, state.solver_state)
        init = step.start(state.y, state.solver_state)
        jump = None
        if state.made_jump is not False and step.remembers:
            jump = jnp.zeros(length, bool).at[0].set(state.made_jump)
        intervals = (grid.before, grid.after, jump)
        # Interpolation asks for what happened inside of steps: of all, or of few.
        wanted = sum(0 if sub.ts is None else sub.ts.shape[0] for sub in subs)
        dense = saveat.dense or wanted >= length

        take = step
        if isinstance(solver, diffrax.AbstractImplicitSolver):
            take = GuardedStep(step, init, t0)

        def function(carry, interval):
            carry, report = take(carry, interval)
            result = report.result if report.result.is_traced() else None
            return carry, (carry, result, report.dense_info if dense else None)

        ys, result, stats = self._solve(function, step, init, intervals, grid, throw)
        carries, results, infos = ys
        # Of states that are right; beyond the prefix it may be that of an iterate.
        failure, position = first_failure(results)
        genuine = diffrax.is_okay(result) | (position <= stats["converged_prefix"])
        genuine = genuine & ~diffrax.is_okay(failure)
        result = diffrax.RESULTS.where(genuine, failure, result)
        starts = delayed(init, carries)

        def between(ts):
            k = jnp.searchsorted(grid.after, ts)
            at = jax.tree.map(lambda x: x[k], (starts, intervals))
            if dense:
                info = jax.tree.map(lambda x: x[k], infos)
            else:
                info = jax.vmap(take)(*at)[1].dense_info
            before, after, _ = at[1]
            return jax.vmap(step.evaluate)(before, after, info, ts)

        path = Path(grid, t0, state.y, carries.y, between)
        last = jax.tree.map(lambda x: x[-1], (starts, intervals, carries, grid.ends))
        solver_state = state.solver_state
        if step.remembers:
            solver_state = last[2].solver_state
        elif saveat.solver_state:
            solver_state = take(*last[:2])[1].solver_state
        number = jnp.array(length)
        state = dataclasses.replace(
            state,
            y=last[2].y,
            tprev=last[3],
            made_jump=False,
            solver_state=solver_state,
            controller_state=grid.controller_state,
            result=result,
            num_steps=number,
            num_accepted_steps=number,
            num_rejected_steps=jnp.array(0),
            **_save(saveat, state, path, args, infos),
        )
        return state, stats

    def _solve(self, function, step, init, intervals, grid, throw):
        """`(ys, result, stats)`; a loop is not asked how well it solved the chain."""
        options = {**self.options, "throw": throw}
        if _is_sequential(function, init, options, grid.after.shape[0]):
            _, ys = scan(function, init, intervals, **options)
            stats = _sequential_stats(ys[0].y, self.length)
            return ys, diffrax.RESULTS.successful, stats
        guess = guess_of(self.guess, step, init, intervals, grid)
        (_, ys), solution = scan(
            function, init, intervals, guess=guess, return_solution=True, **options
        )
        stats = dict(solution.stats)
        stats = {
            "num_sweeps": stats.pop("num_steps"),
            **stats,
            "result": solution.result,
        }
        return ys, _translated(solution.result), stats


def _is_sequential(function, init, options, length):
    solver = options["solver"]
    if solver != "auto" if isinstance(solver, str) else True:
        return isinstance(solver, Sequential) or solver == "sequential"
    structure = options["structure"]
    structure = structure_of(function) if structure is None else structure
    size = Layout.of(jax.eval_shape(lambda: init)).size
    return choose(length, size, jax.default_backend(), structure).solver == "sequential"


def _translated(result):
    """The member of Diffrax's results that is closest to one of ours."""
    theirs: Any = diffrax.RESULTS
    translated = theirs.nonlinear_divergence
    for ours, name in (
        (RESULTS.max_steps_reached, theirs.nonlinear_max_steps_reached),
        (RESULTS.nonfinite, theirs.nonfinite),
        (RESULTS.successful, theirs.successful),
    ):
        translated = theirs.where(result == ours, name, translated)
    return translated


def _save(saveat, state, path, args, infos=None):
    """Those fields of the state that hold what was asked for."""
    saved: dict[str, Any] = {
        "save_state": jax.tree.map(
            lambda sub, saved: path.save(sub, saved, args),
            saveat.subs,
            state.save_state,
            is_leaf=is_sub,
        )
    }
    if saveat.dense:
        length = path.length
        ts = state.dense_ts.at[0].set(path.t0)
        saved["dense_ts"] = ts.at[1 : length + 1].set(path.grid.ends)
        saved["dense_save_index"] = jnp.array(length)
        if length:
            saved["dense_infos"] = jax.tree.map(
                lambda buffer, x: buffer.at[:length].set(x), state.dense_infos, infos
            )
    return saved


def _no_steps(t0):
    none = jnp.zeros(0, t0.dtype)
    return Grid(none, none, none, None)


def _repeat(state, ts):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, ts.shape + x.shape), state.y)


def _empty_stats():
    return _stats(RESULTS.successful, 0, 0)


def _sequential_stats(ys, length):
    """Of a loop: whether it is finite, and no more."""
    bad = jnp.zeros(length, bool)
    for x in jax.tree.leaves(jax.lax.stop_gradient(ys)):
        bad = bad | ~jnp.isfinite(x).reshape(length, -1).all(1)
    prefix = jnp.where(bad.any(), jnp.argmax(bad), length)
    result = RESULTS.where(bad.any(), RESULTS.nonfinite, RESULTS.successful)
    return _stats(result, length, prefix)


def _stats(result, evaluations, prefix):
    unknown = jnp.array(jnp.nan)
    return {
        "num_sweeps": jnp.array(0),
        "num_evals": jnp.array(evaluations),
        "num_linear": jnp.array(0),
        "residual": unknown,
        "converged_prefix": jnp.asarray(prefix),
        "error_estimate": unknown,
        "lyapunov_exponent": unknown,
        "sequential_from": jnp.array(0),
        "result": result,
    }
