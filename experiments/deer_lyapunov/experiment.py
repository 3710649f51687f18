"""Solves networks of growing gain by several solvers, and counts sweeps."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.verdicts import codes_of, worst_result
from parafix.core.jax import default_tolerance
from parafix.deer.jax import scan

from ..common import Advance, number
from .config import Config


SOLVERS = ("deer", "quasi-deer", "elk", "jacobi")
_GAINS = (0.5, 2.0)
# Of other solutions of the same network with the same inputs.
_STARTS = 16


def steps(config: Config) -> int:
    return config.seeds * config.gains * (1 + len(SOLVERS))


def run(config: Config, advance: Advance) -> Iterator[dict[str, Any]]:
    """A row for each seed, gain and solver."""
    tolerance = default_tolerance("float64")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for seed in range(config.seeds):
            draw = np.random.default_rng(seed)
            n = config.size
            matrix = draw.standard_normal((n, n)) / np.sqrt(n)
            shape = (config.length, n)
            xs = config.input_scale * draw.standard_normal(shape)
            for gain in np.linspace(*_GAINS, config.gains):
                advance(f"seed {seed}, gain {gain:.3g}: sequential")
                truth = _solve("sequential", gain * matrix, xs)
                exponent = truth["stats"]["lyapunov_exponent"]
                starts = np.random.default_rng(seed).uniform(-1, 1, (_STARTS, n))
                ends = np.asarray(_ends(gain * matrix, xs, starts))
                spread = np.max(np.abs(ends - truth["states"][-1]))
                for solver in SOLVERS:
                    advance(f"seed {seed}, gain {gain:.3g}: {solver}")
                    found = _solve(solver, gain * matrix, xs)
                    stats = found["stats"]
                    difference = np.abs(found["states"] - truth["states"])
                    yield {
                        "seed": seed,
                        "gain": number(gain),
                        "solver": solver,
                        # Of the sequential states; a solver knows its prefix alone.
                        "exponent": number(exponent),
                        # How far apart the ends are of solutions from other starts.
                        "spread": number(spread),
                        "solver_exponent": number(stats["lyapunov_exponent"]),
                        "sweeps": int(stats["num_steps"]),
                        "prefix": int(stats["converged_prefix"]),
                        "error_estimate": number(stats["error_estimate"]),
                        "result": worst_result(found["codes"]),
                        "difference": number(difference.max()),
                        "tolerance": tolerance,
                    }


def _step(matrix, z, x):
    z = jnp.tanh(matrix @ z + x)
    return z, z


@functools.partial(jax.jit, static_argnums=0)
def _compiled(solver, matrix, xs):
    (_, states), solution = scan(
        functools.partial(_step, matrix),
        jnp.zeros(xs.shape[1], xs.dtype),
        xs,
        solver=solver,
        throw=False,
        return_solution=True,
    )
    stats = solution.stats
    return {"states": states, "stats": stats, "codes": codes_of(solution.result)}


@jax.jit
def _ends(matrix, xs, starts):
    """The last states of the solutions from many starts."""
    run = lambda start: lax.scan(functools.partial(_step, matrix), start, xs)[0]
    return jax.vmap(run)(starts)


def _solve(solver, matrix, xs):
    return jax.tree.map(np.asarray, _compiled(solver, matrix, xs))
