"""Runs a scan by sweeps, and says how it went."""

import dataclasses
from typing import Any

import torch

from parafix.core.torch import AbstractSweep, ChainAdjoint, Sequential, solve_chain

from ._job import check_pair, check_samples, Job, Outputs


def run_in_parallel(
    job: Job,
    solver: str | AbstractSweep | Sequential,
    guess: Any,
    max_steps: int | None,
    window: int | None,
    throw: bool,
    growth: bool,
    fallback: str | None = None,
    patience: int | None = None,
    adjoint: str | ChainAdjoint = "implicit",
) -> Any:
    """`((carry, ys), solution)` by sweeps; there are steps, and entries in a state."""
    # Whether `f` fits, and which of its outputs are the new carry itself.
    with torch.no_grad():
        first = job.f(job.init, job.x(0))
        check_pair(first)
        job.layout.check(first[0], job.autocast)
        check_samples(job, first[0])
    outputs = Outputs(first)

    drivers = job.run_drivers()
    problem = job.chain(drivers[0])
    solution = solve_chain(
        problem,
        solver=solver,
        rtol=job.rtol,
        atol=job.atol,
        guess=_states(job, problem, guess),
        max_steps=max_steps,
        window=window,
        throw=throw,
        growth=growth,
        fallback=fallback,
        patience=patience,
        adjoint=adjoint,
    )
    out, carries = outputs.at_states(job, problem, solution.value, drivers, window)
    return out, dataclasses.replace(solution, value=carries)


def _states(job, problem, guess):
    """The states `(T, B, n)` at which the sweeps start."""
    if guess is None:
        return None
    if isinstance(guess, str):
        # What one step from the initial carry leads to.
        with torch.no_grad():
            return problem(problem.init.expand(job.length, *problem.init.shape))
    return job.layout.split(job.flip(guess))[0]
