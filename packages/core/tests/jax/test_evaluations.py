"""How many evaluations the quasi-Newton solvers take, beside what was measured."""

import equinox as eqx
import jax
import numpy as np
import pytest

from parafix.core.jax import Anderson, Broyden, fixed_point, RESULTS
from parafix.core.testing.jax import stacked, zoo


PROBLEMS = ("symmetric", "orthogonal", "rotations", "wide", "tanh")
SEEDS, SIZE = 5, 50

# Calls of `f` to 1e-9 from zero, n = 50, the median of five seeds: prototypes in NumPy,
# in the order of PROBLEMS. A history is a number of differences.
MEASURED = {
    "good": (42, 72, 66, 37, 31),
    "bad": (38, 61, 58, 48, 30),
    "good, 10": (55, 375, 103, 44, 38),
    "bad, 10": (49, 354, 80, 47, 39),
    "anderson, 6": (53, 357, 135, 43, 37),
    "anderson, 10": (45, 352, 118, 34, 34),
    "anderson, 20": (41, 317, 84, 29, 30),
    "anderson, 50": (34, 52, 47, 29, 30),
}


def solver_of(name, rtol=1e-9, atol=1e-9):
    kind, _, memory = name.partition(", ")
    if kind == "anderson":
        return Anderson(rtol, atol, history=int(memory))
    return Broyden(rtol, atol, memory=int(memory or 1000), kind=kind)


@eqx.filter_jit
def solve(fn, y0, args, solver):
    def one(y0, args):
        return fixed_point(fn, y0, args, solver=solver, max_steps=1000, throw=False)

    return jax.vmap(one)(y0, args)


def evaluations(solver, scale=1.0):
    """The median over the seeds, for each of PROBLEMS."""
    linear = [zoo(p, seed, SIZE) for p in PROBLEMS[:-1] for seed in range(SEEDS)]
    others = [zoo(PROBLEMS[-1], seed, SIZE) for seed in range(SEEDS)]
    counts = []
    # Those of one function are one program.
    for batch in (stacked(linear), stacked(others)):
        scaled = batch.scaled(scale)
        args = {**scaled.args, "scale": np.full(len(batch.y0), scale)}
        solution = solve(scaled.fn, scaled.y0, args, solver)
        assert (solution.result == RESULTS.successful).all()
        np.testing.assert_allclose(solution.value, scaled.solution, atol=1e-6 * scale)
        counts.append(solution.stats["num_evals"].reshape(-1, SEEDS))
    return np.median(np.concatenate(counts), axis=1)


@pytest.mark.parametrize("name", MEASURED)
def test_as_many_as_measured(name):
    counts = evaluations(solver_of(name))
    # Other seeds and another random generator: to within a quarter, on every problem.
    np.testing.assert_allclose(counts, MEASURED[name], rtol=0.25)


@pytest.mark.parametrize("name", ["good", "bad, 10", "anderson, 10"])
def test_as_many_in_other_units(name):
    # So small an `atol` means nothing in any of the units.
    solver = solver_of(name, atol=1e-30)
    counts = {scale: evaluations(solver, scale) for scale in (1.0, 1e-3, 1e3)}
    for scale in (1e-3, 1e3):
        np.testing.assert_allclose(counts[scale], counts[1.0], rtol=0.1, atol=1)
