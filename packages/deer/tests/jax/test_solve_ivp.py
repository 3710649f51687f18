"""ODEs on a grid: SciPy's integrators, matrix exponentials, finite differences."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from hypothesis import given, strategies as st

from parafix.core.jax import RESULTS
from parafix.core.testing.jax import assert_close, assert_identical
from parafix.deer.jax import solve_ivp
from parafix.deer.jax._grid import checked_state
from parafix.deer.jax._phi import responses


def cubic(y, x, params):
    return -params * y**3 + 30 * jnp.sin(6 * x)


@ft.cache
def solved(length, solver="deer"):
    """The cubic equation from 0.5 to t = 2, the solution, and what SciPy finds."""
    ts = np.linspace(0, 2, length)
    ys, solution = solve_ivp(
        cubic, jnp.array([0.5]), ts, 10.0, ts, solver=solver, return_solution=True
    )
    expected = scipy.integrate.solve_ivp(
        lambda t, y: -10 * y**3 + 30 * np.sin(6 * t),
        (0, 2),
        [0.5],
        method="LSODA",
        t_eval=ts,
        rtol=1e-12,
        atol=1e-12,
    )
    assert expected.success
    return ys, solution, np.abs(ys - expected.y.T).max()


class TestAccuracy:
    def test_a_fine_grid(self):
        _, solution, error = solved(10_000)
        assert error < 1e-6
        assert solution.result == RESULTS.successful
        assert solution.stats["num_steps"] <= 12

    @pytest.mark.parametrize(
        "solver", ["sequential", pytest.param("deer", marks=pytest.mark.slow)]
    )
    def test_a_grid_on_which_the_research_code_made_nan(self, solver):
        _, solution, error = solved(1000, solver)
        assert error < 2e-5
        assert solution.result == RESULTS.successful

    def test_second_order_in_the_inputs(self):
        fine, coarse = solved(10_000)[2], solved(1000, "sequential")[2]
        slope = np.log(coarse / fine) / np.log(9999 / 999)
        assert abs(slope - 2) < 0.15

    @pytest.mark.parametrize("length", [2, 6, 11, 21, 51])
    def test_grids_that_resolve_nothing(self, length):
        # The right-hand side has slopes of -60, and the states are below 1.5.
        ys, _, _ = solved(length, "sequential")
        assert np.abs(ys).max() < 4

    @pytest.mark.slow
    def test_sweeps_find_what_the_loop_does_there_too(self):
        assert_close(solved(11)[0], solved(11, "sequential")[0], 1e-10)

    def test_third_order_without_inputs(self):
        def f(y, x, params):
            return jnp.stack([y[1], jnp.sin(y[0]) - y[1] * y[0]])

        errors = []
        for length in (51, 101):
            ts = np.linspace(0, 4, length)
            y0 = jnp.array([1.0, 0.5])
            ys = solve_ivp(f, y0, None, None, ts, solver="sequential")
            expected = scipy.integrate.solve_ivp(
                lambda t, y: np.array([y[1], np.sin(y[0]) - y[1] * y[0]]),
                (0, 4),
                np.asarray(y0),
                method="DOP853",
                t_eval=ts,
                rtol=1e-12,
                atol=1e-13,
            )
            errors.append(np.abs(ys - expected.y.T).max())
        assert abs(np.log2(errors[0] / errors[1]) - 3) < 0.15

    def test_linear_equations_are_solved_exactly(self):
        a = np.array([[-1.0, 4.0, 0.0], [-4.0, -1.0, 0.5], [0.0, 1.0, -30.0]])
        slope = np.array([1.0, -2.0, 3.0])
        ts = np.array([0.0, 0.7, 1.0, 2.5])

        def f(y, x, a):
            return a @ y + x

        ys = solve_ivp(
            f,
            jnp.ones(3),
            slope * ts[:, None],
            jnp.asarray(a),
            ts,
            solver="sequential",
        )
        # As one with five unknowns: also the input, and the number one.
        whole = np.zeros((7, 7))
        whole[:3, :3], whole[:3, 3:6], whole[3:6, 6] = a, np.eye(3), slope
        start = np.concatenate([np.ones(3), np.zeros(3), [1.0]])
        expected = [(scipy.linalg.expm(t * whole) @ start)[:3] for t in ts]
        assert_close(ys, np.stack(expected), 1e-10)


class TestDerivatives:
    def test_to_everything(self, check_derivatives):
        def f(y, x, params):
            return jnp.tanh(params["weights"] @ y + x["force"]) - x["rate"] * y

        ts = jnp.array([0.0, 0.1, 0.4, 0.5, 1.0, 1.2])
        args = (
            jnp.array([0.5, -1.0]),
            {"force": jnp.sin(7 * ts)[:, None], "rate": 1 + ts},
            {"weights": jnp.array([[0.3, -2.0], [1.5, 0.2]])},
            ts,
        )
        check_derivatives(ft.partial(solve_ivp, f), args, 1e-6)

    @pytest.mark.slow
    def test_of_the_cubic_equation(self, check_derivatives):
        ts = jnp.linspace(0, 2, 1000)
        args = (jnp.array([0.5]), ts, jnp.array(10.0), ts)
        check_derivatives(ft.partial(solve_ivp, cubic), args, 1e-5)


class TestResults:
    @pytest.mark.slow
    def test_a_batch_of_samples(self):
        ts = jnp.linspace(0, 1, 6)
        y0s = jnp.array([[0.0], [1.0]])
        solve = ft.partial(solve_ivp, cubic, xs=ts, params=10.0, ts=ts)
        ys = jax.vmap(solve)(y0s)
        for y0, y in zip(y0s, ys, strict=True):
            assert_close(y, solve(y0, solver="sequential"), 1e-11)

    @pytest.mark.slow
    def test_guesses(self):
        ts = np.linspace(0, 2, 11)
        ys, solution, _ = solved(11)
        assert_identical(solution.value, ys)
        for guess in (ys, solution):
            _, again = solve_ivp(
                cubic,
                jnp.array([0.5]),
                ts,
                10.0,
                ts,
                guess=guess,
                return_solution=True,
            )
            assert again.stats["num_steps"] <= 2

    def test_one_time(self):
        y0 = jnp.array([0.5])
        ys = solve_ivp(cubic, y0, jnp.zeros(1), 10.0, jnp.zeros(1))
        assert_identical(ys, y0[None])

    @pytest.mark.slow
    def test_a_field_that_is_not_finite(self):
        def f(y, x, params):
            return jnp.where(x > 0.55, jnp.nan, -y)

        ts = np.linspace(0, 1, 11)
        args = (f, jnp.ones(1), ts, None, ts)
        ys, solution = solve_ivp(*args, return_solution=True, throw=False)
        # The sixth step ends at t = 0.6.
        assert solution.result == RESULTS.nonfinite
        assert solution.position == 5
        assert np.isfinite(ys[:6]).all()
        assert np.isnan(ys[6:]).all()

    def test_single_and_half_precision(self):
        ts = np.linspace(0, 1, 11)
        f = lambda y, x, a: jnp.sin(a * y)
        solve = ft.partial(solve_ivp, f, xs=None, ts=ts, solver="sequential")
        for dtype in (jnp.float32, jnp.bfloat16):
            y0 = jnp.ones(1, dtype)
            ys = solve(y0, params=jnp.ones((), dtype))
            assert ys.dtype == dtype
            expected = solve(jnp.ones(1), params=jnp.ones(()))
            assert_close(ys.astype(float), expected, 20 * float(jnp.finfo(dtype).eps))


TIMES = np.linspace(0.0, 1.0, 4)


@pytest.mark.parametrize(
    ("y0", "xs", "ts", "message"),
    [
        (np.ones((2, 1)), TIMES, TIMES, r"`y0` must have shape \(n,\)"),
        (np.ones(1, int), TIMES, TIMES, "`y0` must be real floats"),
        (np.ones(1), TIMES[:3], TIMES, "`xs` must have the length of `ts`, 4"),
        (np.ones(1), {"a": 1.0}, TIMES, r"`xs\['a'\]` must have the length"),
        (np.ones(1), TIMES, TIMES[:, None], r"`ts` must have shape \(T,\)"),
        (np.ones(1), TIMES[:0], TIMES[:0], "with at least one time"),
        (np.ones(1), TIMES, TIMES[::-1], r"`ts` must increase; ts\[0\] is 1"),
        (np.ones(1), TIMES, np.array([0, 1, 1, 2]), r"ts\[1\] is 1 and ts\[2\] is 1"),
        (np.ones(1), TIMES, np.full(4, np.nan), "`ts` must increase"),
        (np.ones(1), TIMES, np.array([1j, 2, 3, 4]), "`ts` must be real numbers"),
    ],
)
def test_bad_input(y0, xs, ts, message):
    with pytest.raises((TypeError, ValueError), match=message):
        solve_ivp(lambda y, x, params: y, y0, xs, None, ts)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda y, x, p: y[:1], r"`f` must return dy/dt of shape \(2,\)"),
        (lambda y, x, p: (y, y), r"`f` must return dy/dt of shape \(2,\)"),
        (lambda y, x, p: y.astype(jnp.float32), "of the dtype of `y0`, float64"),
    ],
)
def test_a_field_of_another_shape(f, message):
    with pytest.raises((TypeError, ValueError), match=message):
        solve_ivp(f, jnp.ones(2), TIMES, None, TIMES)


def test_a_state_that_is_no_array():
    # Past the types of `solve_ivp`, which are looked at in these tests.
    with pytest.raises(TypeError, match="`y0` must be an array .* got a dict"):
        checked_state({"a": jnp.ones(2)})


def test_a_start_that_is_not_finite_and_no_step():
    arguments = (cubic, jnp.array([jnp.nan]), TIMES[:1], 1.0, TIMES[:1])
    _, solution = solve_ivp(*arguments, throw=False, return_solution=True)
    assert solution.result == RESULTS.nonfinite


def test_guesses_of_another_length():
    with pytest.raises(ValueError, match="`guess` must hold states at all 4 times"):
        solve_ivp(cubic, jnp.ones(1), TIMES, 1.0, TIMES, guess=np.ones((3, 1)))


class TestResponses:
    """`phi_1(a)`, `phi_2(a)` and `2 phi_3(a)`."""

    compiled = staticmethod(jax.jit(responses))

    @given(st.integers(0, 2**32 - 1), st.floats(-3, 1.5))
    def test_an_exponential_of_a_larger_matrix(self, seed, exponent):
        a = np.random.default_rng(seed).normal(size=(3, 3)) * 10**exponent
        whole = np.zeros((12, 12))
        whole[:3, :3] = a
        whole[:9, 3:] = np.eye(9)
        _, one, two, three = np.split(scipy.linalg.expm(whole)[:3], 4, axis=1)
        scale = max(np.abs(scipy.linalg.expm(a)).max(), 1.0)
        actual = self.compiled(jnp.asarray(a))
        assert_close(actual / scale, np.stack([one, two, 2 * three]) / scale, 1e-10)

    @pytest.mark.parametrize("size", [1, 3])
    def test_zero(self, size):
        a = jnp.zeros((size, size))
        unit = jnp.eye(size)
        expected = [k * unit for k in (1, 1 / 2, 1 / 3)]
        assert_close(self.compiled(a), jnp.stack(expected), 1e-13)
        _, tangent = jax.jvp(self.compiled, (a,), (unit,))
        expected = [k * unit for k in (1 / 2, 1 / 6, 1 / 12)]
        assert_close(tangent, jnp.stack(expected), 1e-13)

    @pytest.mark.parametrize("size", [1e2, 1e6, 1e12, 1e100])
    def test_large_negative_numbers(self, size):
        actual = size * self.compiled(jnp.array([[-size]]))[:, 0, 0]
        expected = [1, 1 - 1 / size, 1 - 2 / size + 2 / size**2]
        assert_close(actual, jnp.array(expected), 1e-12)

    def test_a_slow_mode_beside_a_stiff_one(self):
        basis = np.array([[1.0, 0.3, 0.1], [-0.2, 1.0, 0.4], [0.5, 0.1, 1.0]])
        rates = np.array([-1e6, -1.0, 0.5])
        a = basis * rates @ np.linalg.inv(basis)
        exact = basis * (np.expm1(rates) / rates) @ np.linalg.inv(basis)
        assert_close(self.compiled(jnp.asarray(a))[0], jnp.asarray(exact), 1e-8)
