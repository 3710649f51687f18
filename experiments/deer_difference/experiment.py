"""Runs a GRU in both ways and takes the difference."""

import functools
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.verdicts import codes_of, worst_result
from parafix.core.jax import default_tolerance
from parafix.deer.jax import scan

from ..common import Advance, number, numbers
from .config import Config


SOLVERS = ("deer", "quasi-deer")
DTYPES = ("float32", "float64")
# So many outputs at the end are kept as they are, for the picture.
_SHOWN = 100


def steps(config: Config) -> int:
    return config.seeds * (1 + len(DTYPES) * len(SOLVERS))


def run(config: Config, advance: Advance) -> Iterator[dict[str, Any]]:
    """For each seed: what rounding does to the loop, then dtypes and solvers."""
    for seed in range(config.seeds):
        # Drawn in float32, so that both dtypes have the same numbers.
        cell = eqx.nn.GRUCell(config.inputs, config.size, key=jax.random.key(seed))
        draw = np.random.default_rng(seed)
        shape = (config.length, config.inputs)
        xs = draw.standard_normal(shape).astype(np.float32)
        advance(f"seed {seed}: the loop")
        truths = {dtype: _in(dtype, _sequential, cell, xs) for dtype in DTYPES}
        loop = _profile(truths["float32"], truths["float64"], config.stretches)
        yield {"seed": seed, "dtype": "float32", "solver": "loop", **loop}
        for dtype in DTYPES:
            for solver in SOLVERS:
                advance(f"seed {seed}: {solver}, {dtype}")
                solve = functools.partial(_parallel, solver)
                states, sweeps, estimate, codes = _in(dtype, solve, cell, xs)
                truth = truths[dtype]
                scale = np.max(np.abs(truth))
                eps = float(jnp.finfo(dtype).eps)
                # What the tolerance leaves open, and what another order of rounding
                # does.
                tolerance = default_tolerance(dtype)
                allowed = tolerance * (1 + scale)
                allowed += 10 * (float(estimate) + eps) * scale
                yield {
                    "seed": seed,
                    "dtype": dtype,
                    "solver": solver,
                    "sweeps": int(sweeps),
                    "result": worst_result(codes),
                    "tolerance": number(tolerance),
                    "allowed": number(allowed),
                    "error": number(np.max(np.abs(states - truths["float64"]))),
                    **_profile(states, truth, config.stretches),
                    "outputs": numbers(states[-_SHOWN:, 0]),
                    "sequential_outputs": numbers(truth[-_SHOWN:, 0]),
                }


def _in(dtype, function, cell, xs):
    """The results of a function in a dtype, floats as NumPy arrays of float64."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        cell = jax.tree.map(lambda w: jnp.asarray(np.asarray(w), dtype), cell)
        found = eqx.filter_jit(function)(cell, jnp.asarray(xs, dtype))
        return jax.tree.map(_widened, found)


def _widened(x):
    x = np.asarray(x)
    return x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x


def _step(cell, h, x):
    h = cell(x, h)
    return h, h


def _sequential(cell, xs):
    init = jnp.zeros(cell.hidden_size, xs.dtype)
    return lax.scan(functools.partial(_step, cell), init, xs)[1]


def _parallel(solver, cell, xs):
    init = jnp.zeros(cell.hidden_size, xs.dtype)
    step = functools.partial(_step, cell)
    (_, ys), solution = scan(
        step, init, xs, solver=solver, throw=False, return_solution=True
    )
    stats = solution.stats
    codes = codes_of(solution.result)
    return ys, stats["num_steps"], stats["error_estimate"], codes


def _profile(found, expected, stretches):
    """The largest difference of all units, overall and in each stretch of time."""
    difference = np.max(np.abs(found - expected), axis=1)
    starts = np.unique(np.linspace(0, len(difference), stretches + 1).astype(int)[:-1])
    return {
        "largest": number(difference.max(), 3),
        "median": number(np.median(difference), 3),
        "starts": starts.tolist(),
        "difference": numbers(np.maximum.reduceat(difference, starts), 3),
    }
