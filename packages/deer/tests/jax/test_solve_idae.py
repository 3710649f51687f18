"""Differential-algebraic equations: a pendulum in Cartesian coordinates, and others."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from parafix.core.jax import RESULTS
from parafix.core.testing.jax import assert_close, assert_identical
from parafix.deer.jax import solve_idae
from parafix.deer.jax._consistent import consistent


def pendulum(slope, state, x, g):
    """Of index 3. Of unit length; the last of the five is the tension of the rod."""
    dx, dy, du, dv, _ = slope
    x, y, u, v, tension = state
    forces = du + tension * x, dv + tension * y + g
    return jnp.stack([dx - u, dy - v, *forces, x**2 + y**2 - 1])


LEVEL = jnp.array([1.0, 0.0, 0.0, 0.0, 0.0])


def by_angle(ts):
    """The same pendulum as an ODE for the angle that its rod makes, by SciPy."""
    solution = scipy.integrate.solve_ivp(
        lambda t, q: [q[1], -9.8 * np.cos(q[0])],
        (0, ts[-1]),
        [0.0, 0.0],
        t_eval=ts,
        rtol=1e-10,
        atol=1e-10,
    )
    assert solution.success
    a, w = solution.y
    tension = w**2 - 9.8 * np.sin(a)
    return np.stack(
        [np.cos(a), np.sin(a), -w * np.sin(a), w * np.cos(a), tension], axis=1
    )


@ft.cache
def fine():
    ts = np.linspace(0, 2, 10_000)
    ys, solution = solve_idae(pendulum, LEVEL, None, 9.8, ts, return_solution=True)
    return ys, solution, by_angle(ts)


class TestPendulum:
    def test_the_constraint(self):
        ys = solve_idae(pendulum, LEVEL, None, 9.8, np.linspace(0, 2, 301))
        assert np.abs(ys[:, 0] ** 2 + ys[:, 1] ** 2 - 1).max() < 1e-12

    @pytest.mark.slow
    def test_ten_thousand_points(self):
        ys, solution, expected = fine()
        assert_identical(solution.value, ys)
        assert np.abs(ys[:, 0] ** 2 + ys[:, 1] ** 2 - 1).max() < 1e-12
        # The tension at the start follows from what is not looked at there.
        error = np.abs(ys - expected)[1:].max(0) / np.abs(expected).max(0)
        assert (error < 1e-2).all()
        assert solution.result == RESULTS.successful
        assert solution.stats["num_guess_steps"] <= 20
        assert solution.stats["num_steps"] <= 3
        assert solution.stats["error_estimate"] < 1e-8

    @pytest.mark.slow
    def test_the_loop_over_the_same_steps(self):
        ts = np.linspace(0, 2, 10_000)
        loop = solve_idae(pendulum, LEVEL, None, 9.8, ts, solver="sequential")
        ys, _, _ = fine()
        assert_close(ys[:, :4], loop[:, :4], 1e-11)
        # The last is determined to 2e-16 / h^2.
        assert_close(ys[:, 4], loop[:, 4], 1e-8)

    @pytest.mark.slow
    def test_derivatives(self, check_derivatives):
        # Drag that depends on time, too.
        def f(slope, state, x, g):
            drag = x * state.at[jnp.array([0, 1, 4])].set(0)
            return pendulum(slope, state, None, g) + drag

        def solve(y0, xs, g, ts):
            # The tension has lost half of its digits.
            return solve_idae(f, y0, xs, g, ts)[:, :4]

        ts = jnp.linspace(0, 2, 1000)
        args = (LEVEL, jnp.sin(ts) ** 2, jnp.array(9.8), ts)
        check_derivatives(solve, args, 1e-5, step=1e-6)


class TestSteps:
    def test_a_loop_in_numpy(self):
        # Index 1: y' = -y + z + x, 0 = y + 2 z - 1.
        def f(slope, state, x, params):
            (dy, _), (y, z) = slope, state
            return jnp.stack([dy + params * y - z - x, y + 2 * z - 1])

        ts = np.array([0.0, 0.2, 0.3, 1.0])
        xs = np.array([0.3, -1.0, 2.0, 0.5])
        y0 = jnp.array([0.7, 0.15])
        ys = solve_idae(f, y0, xs, 1.0, ts, solver="sequential")
        y, expected = 0.7, [[0.7, 0.15]]
        for h, x in zip(np.diff(ts), xs[1:], strict=True):
            y = (y + h * (0.5 + x)) / (1 + 1.5 * h)
            expected.append([y, (1 - y) / 2])
        assert_close(ys, np.array(expected), 1e-12)

    def test_one_time(self):
        ys = solve_idae(pendulum, 2 * LEVEL, None, 9.8, np.zeros(1))
        assert_close(ys, LEVEL[None], 1e-14)

    @pytest.mark.slow
    def test_an_equation_without_a_solution_is_no_success(self):
        def f(slope, state, x, params):
            return jnp.stack([slope[0] - 1, state[1] ** 2 + x - 2.5])

        ts = np.arange(5.0)
        ys, solution = solve_idae(
            f, jnp.array([0.0, 1.5]), ts, None, ts, return_solution=True, throw=False
        )
        # The second has no solution at t = 3, where the third step ends.
        assert solution.result == RESULTS.nonfinite
        assert solution.position == 2
        assert np.isfinite(ys[:3]).all()
        assert np.isnan(ys[3:]).all()


class TestStart:
    def start(self, f, y0):
        return jax.jit(ft.partial(consistent, f))(jnp.asarray(y0))

    pendulum = staticmethod(
        jax.jit(ft.partial(consistent, lambda slope, y: pendulum(slope, y, None, 9.8)))
    )

    def test_the_nearest_on_the_circle(self):
        on_circle = jnp.array([0.6, -0.8, 0.4, 0.3, 7.0])
        off_circle = jnp.array([1.2, -1.6, 0.4, 0.3, 7.0])
        assert_close(self.pendulum(off_circle), on_circle, 1e-14)
        # What is consistent stays; from the centre no direction leads to the circle.
        assert_close(self.pendulum(LEVEL), LEVEL, 1e-15)
        assert_close(self.pendulum(on_circle), on_circle, 1e-15)
        assert np.isnan(self.pendulum(jnp.zeros(5))).all()

    def test_what_has_no_slope_is_changed_first(self):
        # Robertson's chemical reaction, its third concentration by conservation.
        def f(slope, y):
            a, b, c = y
            rate = -0.04 * a + 1e4 * b * c
            return jnp.stack(
                [slope[0] - rate, slope[1] + rate + 3e7 * b**2, a + b + c - 1]
            )

        y0 = jnp.array([0.9, 0.05, 0.5])
        assert_close(self.start(f, y0), jnp.array([0.9, 0.05, 0.05]), 1e-14)

    def test_an_ordinary_differential_equation_starts_anywhere(self):
        def f(slope, y):
            return jnp.array([[2.0, 1.0], [0.0, 1.0]]) @ slope - jnp.sin(y)

        y0 = jnp.array([3.0, -1.0])
        assert_identical(self.start(f, y0), y0)

    def test_equations_that_say_the_same(self):
        def f(slope, y):
            return jnp.stack([slope[0] - y[1], y[0] - 2, 3 * (y[0] - 2)])

        y0 = jnp.array([1.0, 5.0, 6.0])
        assert_close(self.start(f, y0), jnp.array([2.0, 5.0, 6.0]), 1e-13)

    @pytest.mark.slow
    def test_none_is_no_success(self):
        y0 = jnp.zeros(5)
        ts = np.linspace(0, 1, 4)
        ys, solution = solve_idae(
            pendulum,
            y0,
            None,
            9.8,
            ts,
            solver="sequential",
            return_solution=True,
        )
        assert solution.result == RESULTS.nonfinite
        assert solution.position == 0
        assert np.isnan(ys).all()

    def test_derivatives(self, check_derivatives):
        def f(y0, radius):
            def circle(slope, y):
                return pendulum(slope, y, None, 9.8).at[4].add(1 - radius**2)

            return consistent(circle, y0)

        args = (jnp.array([1.2, -1.6, 0.4, 0.3, 7.0]), jnp.array(1.5))
        check_derivatives(f, args, 1e-7)

    def test_a_start_that_there_is_not_and_no_step(self):
        square = lambda slope, y, x, params: y**2 + 1
        arguments = (square, jnp.zeros(1), None, None, jnp.zeros(1))
        ys, solution = solve_idae(*arguments, throw=False, return_solution=True)
        assert np.isnan(ys).all()
        assert solution.result == RESULTS.nonfinite
        assert solution.position == 0
        with pytest.raises(Exception, match="NaN or infinity"):
            solve_idae(*arguments)


TIMES = np.linspace(0.0, 1.0, 4)


@pytest.mark.parametrize(
    ("y0", "xs", "ts", "message"),
    [
        (np.ones((2, 1)), TIMES, TIMES, r"`y0` must have shape \(n,\)"),
        (np.ones(1), TIMES[:3], TIMES, "`xs` must have the length of `ts`, 4"),
        (np.ones(1), TIMES, TIMES[::-1], "`ts` must increase"),
        (np.ones(2), TIMES, TIMES, r"`f` must return a residual of shape \(2,\)"),
    ],
)
def test_bad_input(y0, xs, ts, message):
    with pytest.raises(ValueError, match=message):
        solve_idae(lambda slope, y, x, params: slope[:1], y0, xs, None, ts)
