"""`seq1d` is `scan` of a step that returns its carry."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parafix.core.jax import Diagonal, RESULTS
from parafix.core.testing.jax import assert_close, assert_identical
from parafix.deer.jax import scan, seq1d


def cell(y, x, params):
    weights, bias = params
    return jnp.tanh(weights @ y + x + bias)


@pytest.fixture
def problem(getkey):
    weights = jax.random.normal(getkey(), (3, 3)) / 2
    xs = jax.random.normal(getkey(), (20, 3))
    return jnp.full(3, 0.1), xs, (weights, jnp.array([0.1, 0.2, 0.3]))


def loop(y, xs, params):
    weights, bias = map(np.asarray, params)
    ys = []
    for x in np.asarray(xs):
        y = np.tanh(weights @ y + x + bias)
        ys.append(y)
    return np.stack(ys)


@pytest.mark.parametrize("solver", ["deer", "auto"])
def test_a_loop_says_the_same(problem, solver):
    ys, solution = seq1d(cell, *problem, solver=solver, return_solution=True)
    assert_close(ys, loop(*problem), 1e-11)
    assert_identical(solution.value, ys)
    assert solution.result == RESULTS.successful


def test_derivatives(problem, check_derivatives):
    check_derivatives(ft.partial(seq1d, cell), problem, 1e-7)


@pytest.mark.slow
def test_it_is_the_scan(problem):
    y0, xs, params = problem

    def f(y, x):
        y = cell(y, x, params)
        return y, y

    options = {"solver": "jacobi", "window": 7, "max_steps": 5, "throw": False}
    assert_identical(seq1d(cell, *problem, **options), scan(f, y0, xs, **options)[1])


def test_pytrees_with_layers_as_inputs(getkey):
    # A stack of layers: its weights are the inputs, and depth is the time.
    layers = {
        "weights": jax.random.normal(getkey(), (30, 2, 2)) / 2,
        "bias": jax.random.normal(getkey(), (30, 2)),
    }

    def layer(y, x, scale):
        a, b = y
        new = jax.nn.log_sigmoid(x["weights"] @ a + scale * b + x["bias"])
        return new, a.sum()

    y0 = (jnp.ones(2), jnp.array(0.5))
    ys, last = seq1d(layer, y0, layers, 0.3)
    y, steps = y0, []
    for t in range(30):
        y = layer(y, jax.tree.map(lambda x, t=t: x[t], layers), 0.3)
        steps.append(y)
    assert_close((ys, last), jax.tree.map(lambda *y: jnp.stack(y), *steps), 1e-12)


def test_without_inputs_and_with_a_guess():
    def f(y, x, rate):
        assert x is None
        return y + rate * jnp.cos(y)

    y0 = jnp.array([0.0, 1.0])
    ys, solution = seq1d(f, y0, params=0.1, length=20, return_solution=True)
    _, again = seq1d(f, y0, None, 0.1, length=20, guess=solution, return_solution=True)
    assert solution.stats["num_steps"] > again.stats["num_steps"] == 1
    options = {"structure": Diagonal(), "solver": "sequential"}
    assert_close(seq1d(f, y0, None, 0.1, length=20, **options), ys, 1e-12)
    with pytest.raises(ValueError, match="`length` must say how many steps"):
        seq1d(f, y0)


def test_a_step_that_changes_the_shape():
    with pytest.raises(TypeError, match="carry"):
        seq1d(lambda y, x, params: y[:1], jnp.zeros(2), jnp.zeros((3, 2)))


def test_one_program_for_one_function(problem):
    count = 0

    def f(y, x, params):
        nonlocal count
        count += 1
        return cell(y, x, params)

    y0, xs, params = problem
    seq1d(f, y0, xs, params)
    traced = count
    seq1d(f, y0 + 1, 2 * xs, params)
    # What is wrong with `f` is looked at in every call, and nothing is compiled again.
    assert count <= traced + 1
