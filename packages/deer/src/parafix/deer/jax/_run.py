"""Runs a scan, in one of two ways, and says how it went."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from parafix.core.jax import (
    AbstractSweep,
    as_sweep,
    assess,
    RESULTS,
    Sequential,
    Solution,
    solve_chain,
)

from ._job import as_chain, first_step, flip, Job, outputs_at, states_at
from ._loop import loop
from ._segments import Segments


def _run(
    job: Job,
    solver: str | AbstractSweep | Sequential,
    init: PyTree,
    xs: PyTree,
    guess: PyTree,
    segments: Segments,
) -> Any:
    """`(carry, ys)`, or `((carry, ys), solution)` where that is wanted."""
    xs = segments.filled(xs, job.reverse)
    sequential = isinstance(as_sweep(solver, job.rtol, job.atol), Sequential)
    if sequential or job.length * job.layout.size == 0:
        if not job.return_solution:
            return loop(job, init, xs, segments, ask=False)[0]
        rtol, atol = job.rtol, job.atol
        if isinstance(solver, Sequential):
            rtol, atol = solver.rtol, solver.atol
        return _run_sequentially(job, rtol, atol, init, xs, segments)
    body = job.inspect(init, xs)
    body.check_drivers(job.layout)
    out, solution = _run_in_parallel(job, solver, body, init, xs, guess, segments)
    return (out, solution) if job.return_solution else out


_compiled: Any = eqx.filter_jit
run = _compiled(_run)
# What is not differentiated is to be the program of `lax.scan`: what stands around it
# is traced once, and makes no function of its own.
run_loop = _compiled(_run, inline=True)


def _run_sequentially(job, rtol, atol, init, xs, segments):
    out, carries = loop(job, init, xs, segments, ask=True)
    if job.reverse:
        xs, segments = flip((xs, segments))
    z = states_at(job, init, carries, segments)
    if job.inspect(init, xs).tainted:
        return out, _unassessed(job, carries, z)
    problem, _ = as_chain(job, init, xs, segments)
    solution = assess(problem, z, rtol=rtol, atol=atol)
    return out, eqx.tree_at(lambda s: s.value, solution, carries)


def _run_in_parallel(job, solver, body, init, xs, guess, segments):
    if job.reverse:
        xs, segments = flip((xs, segments))
    problem, drivers = as_chain(job, init, xs, segments)
    if guess is not None:
        guess = job.states(guess)
    elif job.ladder == "step":
        guess = first_step(problem)
    solution = solve_chain(
        problem,
        solver=solver,
        rtol=job.rtol,
        atol=job.atol,
        guess=guess,
        max_steps=job.max_steps,
        window=job.window,
        throw=job.throw,
        adjoint="implicit" if job.adjoint is None else job.adjoint,
        fallback=job.fallback,
        patience=job.patience,
    )
    z = solution.value
    out, carries = outputs_at(job, body, problem, z, drivers, xs, segments)
    return out, eqx.tree_at(lambda s: s.value, solution, carries)


def _unassessed(job, carries, z):
    """About a sequential solve that is no chain: only whether it is finite."""
    bad = ~jnp.isfinite(lax.stop_gradient(z)).all(-1)
    # The first time that is bad, of which there may be none, nor a time.
    prefix = jnp.min(
        jnp.where(bad, jnp.arange(job.length), job.length), initial=job.length
    )
    unknown = jnp.full((), jnp.nan, job.layout.dtype)
    none = jnp.array(0)
    return Solution(
        value=carries,
        result=RESULTS.where(bad.any(), RESULTS.nonfinite, RESULTS.successful),
        stats={
            "num_steps": jnp.array(job.length),
            "num_evals": none,
            "num_linear": none,
            "residual": unknown,
            "converged_prefix": prefix,
            "error_estimate": unknown,
            "lyapunov_exponent": unknown,
            "sequential_from": none,
        },
        position=job.length - 1 - prefix if job.reverse else prefix,
    )
