"""Sweeps are given up where they will not pay, and a loop goes on."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parafix.core.jax import RESULTS
from parafix.core.testing.jax import assert_close, assert_identical, gru, logistic
from parafix.deer.jax import scan


LENGTH, PATIENCE = 300, 10
SAFE = {
    "solver": "deer",
    "fallback": "sequential",
    "patience": PATIENCE,
    "throw": False,
    "return_solution": True,
}


def gain(factor):
    """A network of tanh units, whose iterates saturate if the gain is large."""
    W = factor * jax.random.normal(jax.random.key(0), (8, 8)) / 8**0.5

    def f(h, x):
        h = jnp.tanh(W @ h + x)
        return h, h

    return f, jnp.full(8, 0.1), 0.1 * jax.random.normal(jax.random.key(9), (LENGTH, 8))


def lorenz(z, _):
    x, y, w = z
    slope = jnp.stack([10 * (y - x), x * (28 - w) - y, x * y - 8 / 3 * w])
    z = z + 0.01 * slope
    return z, z


CHAOTIC = {
    "logistic": (logistic, jnp.array(0.3), None),
    "lorenz": (lorenz, jnp.ones(3), None),
    "gain 2": gain(2.0),
}


@pytest.mark.parametrize(
    "name",
    ["logistic", "gain 2", pytest.param("lorenz", marks=pytest.mark.slow)],
)
def test_errors_that_grow_end_the_sweeps(name):
    f, init, xs = CHAOTIC[name]
    (carry, ys), solution = scan(f, init, xs, LENGTH, **SAFE)
    right, expected = lax.scan(f, init, xs, LENGTH)
    assert_close((carry, ys), (right, expected), 1e-11)
    stats = solution.stats
    assert solution.result == RESULTS.successful
    assert stats["num_steps"] == PATIENCE
    assert stats["sequential_from"] < LENGTH // 4


@pytest.mark.slow
def test_iterates_that_run_away_end_them_later():
    # The chain contracts, and says so; but the iterates are far from it.
    f, init, xs = gain(3.0)
    out, solution = scan(f, init, xs, **SAFE)
    assert_close(out, lax.scan(f, init, xs), 1e-11)
    assert solution.result == RESULTS.successful
    assert solution.stats["lyapunov_exponent"] < -0.1
    assert solution.stats["num_steps"] == 4 * PATIENCE
    assert 0 < solution.stats["sequential_from"] < LENGTH


def test_contracting_chains_are_looked_at_and_left_alone():
    problem = gru(jax.random.key(1), LENGTH)
    f, init = problem.bind(), problem.init

    def solve(patience):
        options = {**SAFE, "patience": patience}
        return jax.jit(lambda xs: scan(f, init, xs, **options))(problem.xs)

    (out, solution), (plain, expected) = solve(4), solve(None)
    assert_identical(out, plain)
    for name in ("num_steps", "num_evals", "sequential_from", "residual"):
        assert_identical(solution.stats[name], expected.stats[name])
    assert solution.stats["num_steps"] > 4
    assert solution.stats["sequential_from"] == LENGTH


@jax.jit
def of_gains(gains):
    return jax.vmap(lambda factor: scan(*gain(factor), **SAFE))(gains)


def test_each_sample_by_itself():
    (_, ys), solution = of_gains(jnp.array([0.5, 2.0]))
    starts = solution.stats["sequential_from"]
    assert (solution.result == RESULTS.successful).all()
    assert starts[0] == LENGTH
    assert starts[1] < LENGTH
    assert solution.stats["num_steps"][1] == PATIENCE
    # The other is not there to change a bit of it.
    (_, alone), calm = of_gains(jnp.array([0.5, 0.4]))
    assert_identical(ys[0], alone[0])
    assert_identical(solution.stats["num_steps"][0], calm.stats["num_steps"][0])


@pytest.mark.slow
def test_every_window_has_its_own():
    f, init, xs = gain(2.0)
    out, solution = scan(f, init, xs, window=50, **SAFE)
    assert_close(out, lax.scan(f, init, xs), 1e-11)
    assert solution.result == RESULTS.successful
    assert PATIENCE <= solution.stats["num_steps"] <= 4 * 4 * PATIENCE


@pytest.mark.slow
def test_gradients_are_those_of_the_loop():
    f, init, xs = gain(2.0)
    options = {**SAFE, "return_solution": False}

    def loss(run, init, xs):
        return (run(f, init, xs)[1] ** 2).sum()

    actual, expected = (
        jax.jit(jax.grad(ft.partial(loss, run), (0, 1)))(init, xs)
        for run in (ft.partial(scan, **options), lax.scan)
    )
    assert_close(actual, expected, 1e-9)


def test_auto_has_it(monkeypatch):
    # JAX says that it runs on a GPU, and compiles for the CPU all the same.
    f, init, xs = gain(2.0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    sizes = [
        len(str(jax.make_jaxpr(ft.partial(scan, f, patience=patience))(init, xs)))
        for patience in (None, PATIENCE)
    ]
    assert sizes[0] == sizes[1]
    without = jax.make_jaxpr(ft.partial(scan, f, solver="deer", fallback="sequential"))
    assert len(str(without(init, xs))) < sizes[0]
    assert_close(scan(f, init, xs), lax.scan(f, init, xs), 1e-12)


def test_without_a_fallback_it_is_an_error():
    f, init, xs = gain(1.0)
    for solver in ("deer", "sequential"):
        with pytest.raises(ValueError, match="`patience`.*fallback"):
            scan(f, init, xs, solver=solver, patience=3)
    with pytest.raises(ValueError, match="`patience` must be at least 1"):
        scan(f, init, xs, solver="deer", fallback="sequential", patience=0)
    assert np.isfinite(scan(f, init, xs, patience=3)[0]).all()
