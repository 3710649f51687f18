"""What is done where sweeps fail, and where they start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parafix.core.jax import AbstractSweep, RESULTS
from parafix.core.testing.jax import assert_close, assert_identical, logistic, tanh_cell
from parafix.deer.jax import scan


LENGTH = 40


def solve(problem, init=None, xs=None, **options):
    f = problem.bind()
    init = problem.init if init is None else init
    xs = problem.xs if xs is None else xs
    return scan(f, init, xs, return_solution=True, **options)


def summed(z, x):
    z = z + x
    return z, z


class TestFallback:
    @pytest.mark.parametrize(
        ("solver", "reverse", "window"),
        [
            ("deer", False, None),
            ("jacobi", True, None),
            pytest.param("elk", False, 15, marks=pytest.mark.slow),
        ],
    )
    def test_goes_on_from_the_prefix(self, solver, reverse, window):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        options = {"solver": solver, "reverse": reverse, "window": window}
        without = solve(problem, max_steps=2, throw=False, **options)[1]
        assert without.result == RESULTS.max_steps_reached
        assert without.stats["sequential_from"] == LENGTH
        out, solution = solve(problem, max_steps=2, fallback="sequential", **options)
        expected = lax.scan(problem.bind(), problem.init, problem.xs, reverse=reverse)
        assert_close(out, expected, 1e-9)
        assert solution.result == RESULTS.successful
        assert solution.message() == ""
        stats, prefix = solution.stats, without.stats["converged_prefix"]
        assert stats["sequential_from"] == prefix
        assert stats["converged_prefix"] == LENGTH
        assert stats["residual"] <= 1
        assert 2 <= prefix < LENGTH

    def test_is_not_run_where_nothing_is_wrong(self):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        plain = solve(problem, solver="deer")
        safe = solve(problem, solver="deer", fallback="sequential")
        assert_identical(safe[0], plain[0])
        assert safe[1].stats["sequential_from"] == LENGTH
        assert safe[1].stats["num_evals"] == plain[1].stats["num_evals"]

    def test_gradients_are_those_of_the_loop(self):
        problem = tanh_cell(jax.random.key(1), LENGTH)

        def loss(run, params, init, xs):
            carry, ys = run(problem.bind(params), init, xs)
            return carry.sum() + (ys**2).sum()

        def safe(f, init, xs):
            options = {"max_steps": 3, "fallback": "sequential"}
            return scan(f, init, xs, solver="deer", **options)

        point = (problem.params, problem.init, problem.xs)
        actual, expected = (
            jax.jit(jax.grad(lambda *p, run=run: loss(run, *p), (0, 1, 2)))(*point)
            for run in (safe, lax.scan)
        )
        assert_close(actual, expected, 1e-9)

    @pytest.mark.parametrize(
        "max_steps", [None, pytest.param(3, marks=pytest.mark.slow)]
    )
    def test_of_a_chaotic_chain_is_the_loop_from_the_beginning(self, max_steps):
        # From a state that is right to 1e-12 only, all digits would be lost.
        options = {"length": 200, "solver": "deer", "max_steps": max_steps}
        options["return_solution"] = True
        failed = scan(logistic, jnp.array(0.3), throw=False, **options)[1]
        assert failed.result != RESULTS.successful
        out, solution = scan(logistic, jnp.array(0.3), fallback="sequential", **options)
        assert_identical(out, lax.scan(logistic, jnp.array(0.3), length=200))
        assert solution.result == RESULTS.successful
        assert solution.stats["sequential_from"] == 0
        # Still, it says what it is.
        assert solution.stats["error_estimate"] > 1

    def test_of_a_chaotic_chain_in_windows_does_not_pretend(self):
        # The first windows are solved by sweeps, and their rounding is carried on.
        solution = scan(
            logistic,
            jnp.array(0.3),
            length=200,
            solver="deer",
            window=20,
            throw=False,
            fallback="sequential",
            return_solution=True,
        )[1]
        assert solution.result == RESULTS.ill_conditioned

    def test_each_sample_by_itself(self):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        f, xs = problem.bind(), problem.xs
        inits = jnp.stack([problem.init, 100 * problem.init])

        @jax.jit
        def run(inits, guess):
            one = lambda init, guess: scan(
                f,
                init,
                xs,
                solver="deer",
                guess=guess,
                max_steps=2,
                fallback="sequential",
                return_solution=True,
            )
            return jax.vmap(one)(inits, guess)

        true = jax.vmap(lambda init: lax.scan(f, init, xs)[1])(inits)
        # One sample starts from the answer.
        guess = jnp.stack([true[0], jnp.ones_like(true[1])])
        (_, ys), solution = run(inits, guess)
        assert_close(ys, true, 1e-9)
        assert (solution.result == RESULTS.successful).all()
        start = solution.stats["sequential_from"]
        assert start[0] == LENGTH
        assert start[1] < LENGTH
        # The other is not there to change a bit of it.
        alone = run(inits, jnp.stack([true[0], true[1]]))[0][1]
        assert_identical(ys[0], alone[0])

    @pytest.mark.parametrize("resets", [None, np.arange(LENGTH) % 13 == 0])
    def test_a_nan_is_still_a_nan(self, resets):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        xs = problem.xs.at[20].set(jnp.nan)
        (_, ys), solution = solve(
            problem,
            xs=xs,
            solver="jacobi",
            max_steps=3,
            fallback="sequential",
            resets=resets,
            throw=False,
        )
        f, init = problem.bind(), problem.init
        _, expected = scan(f, init, xs, solver="sequential", resets=resets)
        np.testing.assert_allclose(ys, expected, atol=1e-9)
        assert np.isnan(ys).any()
        assert solution.result == RESULTS.nonfinite
        assert solution.position == 20
        assert solution.stats["sequential_from"] < LENGTH

    def test_a_segment_after_a_bad_one_is_finished(self):
        # The NaN is found at once, in the first segment; the others take longer.
        problem = tanh_cell(jax.random.key(1), LENGTH)
        xs = problem.xs.at[0].set(jnp.nan)
        resets = np.arange(LENGTH) == 5
        (_, ys), solution = solve(
            problem,
            xs=xs,
            solver="jacobi",
            max_steps=6,
            fallback="sequential",
            resets=resets,
            throw=False,
        )
        assert solution.result == RESULTS.nonfinite
        assert solution.position == 0
        expected = lax.scan(problem.bind(), problem.init, xs[5:])[1]
        assert_close(ys[5:], expected, 1e-9)
        assert np.isnan(ys[:5]).all()

    @pytest.mark.parametrize("last", [1.0, jnp.nan])
    def test_small_residuals_add_up(self, last):
        # Forty that are within tolerance, one by one; their sum is not.
        xs, f = jnp.full(60, 1e-12).at[40:].set(last), summed
        tolerance = 2e-12 * (1 + jnp.abs(expected := jnp.cumsum(xs)))
        for options in (
            {"max_steps": 3},
            {"max_steps": 3, "fallback": "sequential"},
            {},
        ):
            (_, ys), solution = scan(
                f,
                jnp.array(0.0),
                xs,
                solver="jacobi",
                throw=False,
                return_solution=True,
                **options,
            )
            right = jnp.abs(ys - expected) <= tolerance
            assert right[: solution.stats["converged_prefix"]].all()
            if np.isnan(last):
                assert solution.result != RESULTS.successful
            elif "fallback" in options:
                assert solution.result == RESULTS.successful

    def test_another_word_is_an_error(self):
        problem = tanh_cell(jax.random.key(1), 5)
        for solver in ("deer", "sequential"):
            with pytest.raises(ValueError, match="`fallback`.*'loop'"):
                solve(problem, solver=solver, fallback="loop")


class TestGuess:
    def test_a_solution(self):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        out, solution = solve(problem, solver="deer")
        again, warm = solve(problem, solver="deer", guess=solution)
        assert_close(again, out, 1e-12)
        assert warm.stats["num_steps"] < solution.stats["num_steps"]

    @pytest.mark.slow
    def test_a_solution_of_a_reversed_run(self):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        reverse = solve(problem, solver="deer", reverse=True)[1]
        warm = solve(problem, solver="deer", reverse=True, guess=reverse)[1]
        assert warm.stats["num_steps"] < reverse.stats["num_steps"]

    @pytest.mark.parametrize(
        ("guess", "reverse"),
        [
            ("step", True),
            pytest.param("step", False, marks=pytest.mark.slow),
            pytest.param("init", True, marks=pytest.mark.slow),
            pytest.param("init", False, marks=pytest.mark.slow),
        ],
    )
    def test_a_name(self, guess, reverse):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        f, init, xs = problem.bind(), problem.init, problem.xs
        options = {"solver": "jacobi", "reverse": reverse, "return_solution": True}
        out, solution = scan(f, init, xs, guess=guess, **options)
        assert_close(out, lax.scan(f, init, xs, reverse=reverse), 1e-9)
        carries = jnp.broadcast_to(init, (LENGTH, *init.shape))
        if guess == "step":
            carries = jax.vmap(lambda x: f(init, x)[0])(xs)
        same = scan(f, init, xs, guess=carries, **options)[1]
        assert solution.stats["num_steps"] == same.stats["num_steps"]

    def test_a_gradient_does_not_see_it(self):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        f, xs = problem.bind(), problem.xs
        run = lambda init, guess: scan(f, init, xs, solver="deer", guess=guess)[0].sum()
        actual = jax.grad(run)(problem.init, "step")
        assert_close(actual, jax.grad(run)(problem.init, "init"), 1e-9)

    def test_another_name_is_an_error(self):
        problem = tanh_cell(jax.random.key(1), 5)
        for solver in ("deer", "sequential"):
            with pytest.raises(ValueError, match="`guess`.*'coarse'"):
                solve(problem, solver=solver, guess="coarse")


def test_a_plain_solve_knows_nothing_of_all_this():
    # What nobody asked for leaves no trace in the program.
    assert AbstractSweep.damping is None
    problem = tanh_cell(jax.random.key(1), LENGTH)
    f = problem.bind()

    def size(**options):
        run = lambda init, xs: scan(f, init, xs, solver="deer", **options)
        return str(jax.make_jaxpr(run)(problem.init, problem.xs)).count("\n")

    plain = size()
    assert size(resets=None, lengths=None, fallback=None, guess="init") == plain
    assert size(fallback="sequential") > plain
    assert size(lengths=3) > plain
