"""ODEs on a grid: SciPy's integrators, matrix exponentials, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from hypothesis import given, strategies as st
from jax.test_util import check_grads

from parafix.core.jax import RESULTS
from parafix.core.testing.jax import assert_close, assert_identical
from parafix.deer.jax import solve_ivp
from parafix.deer.jax._phi import responses


def cubic(y, x, params):
    return -params * y**3 + 30 * jnp.sin(6 * x)


def coupled(y, x, params):
    return jnp.tanh(params["weights"] @ y + x["force"]) - x["rate"] * y


def reference(ts):
    """The cubic equation from 0.5, by SciPy."""
    solution = scipy.integrate.solve_ivp(
        lambda t, y: -10 * y**3 + 30 * np.sin(6 * t),
        (ts[0], ts[-1]),
        [0.5],
        method="LSODA",
        t_eval=ts,
        rtol=1e-12,
        atol=1e-12,
    )
    assert solution.success
    return solution.y.T


def solve_cubic(length, **options):
    ts = jnp.linspace(0, 2, length)
    ys = solve_ivp(cubic, jnp.array([0.5]), ts, 10.0, ts, **options)
    return ys, reference(np.asarray(ts))


class TestAccuracy:
    def test_a_fine_grid(self):
        ys, expected = solve_cubic(10_000)
        assert np.abs(ys - expected).max() < 1e-6

    def test_a_grid_on_which_the_research_code_made_nan(self):
        ys, expected = solve_cubic(1000)
        assert np.abs(ys - expected).max() < 1e-4

    def test_second_order(self):
        errors = []
        for length in (401, 801):
            ys, expected = solve_cubic(length)
            errors.append(np.abs(ys - expected).max())
        assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.15
