"""What a solve of a chain has found, as a `Solution`."""

import equinox as eqx
import jax.numpy as jnp

from ._chain import Chain
from ._custom_types import FloatScalar, IntScalar, States
from ._result import leaf_of, RESULTS
from ._solution import Solution


class Summary(eqx.Module):
    """What one window reports, or a chain."""

    result: RESULTS
    prefix: IntScalar
    num_steps: IntScalar
    num_evals: IntScalar
    num_linear: IntScalar
    residual: FloatScalar
    entry: IntScalar
    start: IntScalar


def solution_of(
    problem: Chain,
    z: States,
    summary: Summary,
    error: FloatScalar,
    growth: FloatScalar,
) -> Solution[States]:
    return Solution(
        value=z,
        result=summary.result,
        stats={
            "num_steps": summary.num_steps,
            "num_evals": summary.num_evals,
            "num_linear": summary.num_linear,
            "residual": summary.residual,
            "converged_prefix": summary.prefix,
            "error_estimate": error,
            "lyapunov_exponent": growth,
            "sequential_from": summary.start,
        },
        position=problem.offset + problem.stride * summary.prefix,
        leaf=leaf_of(summary.entry, problem.leaves),
        leaves=tuple(leaf.name for leaf in problem.leaves),
    )


def empty_solution(problem: Chain) -> Solution[States]:
    """Of a chain without steps, or without a state."""
    none = jnp.array(0)
    summary = Summary(
        RESULTS.successful,
        jnp.array(problem.length),
        none,
        none,
        none,
        jnp.zeros((), problem.init.dtype),
        none,
        jnp.array(problem.length),
    )
    return solution_of(
        problem,
        jnp.zeros((problem.length, problem.size), problem.init.dtype),
        summary,
        jnp.zeros((), problem.init.dtype),
        jnp.full((), jnp.nan, problem.init.dtype),
    )
