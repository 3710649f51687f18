"""What a result promises: failures are never successes, and the prefix is right."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax

from parafix.core.jax import RESULTS
from parafix.core.testing.jax import (
    assert_close,
    assert_identical,
    gru,
    logistic,
    lstm,
    reference_scan,
    tanh_cell,
)
from parafix.deer.jax import DEER, scan


SOLVERS = ("deer", "jacobi")
LENGTH = 12
INPUTS = np.linspace(-1, 1, LENGTH)


def breaks_at(t, value=jnp.nan):
    """A step of two leaves, the second of which turns bad at time `t`."""

    def f(carry, x):
        time, x = x
        good = jnp.tanh(0.5 * carry["fine"] + x)
        bad = jnp.tanh(0.5 * carry["wrong"] + carry["fine"][0])
        bad = jnp.where(time == t, value, bad)
        return {"fine": good, "wrong": bad}, good.sum() + bad

    init = {"fine": jnp.zeros(2), "wrong": jnp.zeros(())}
    xs = (jnp.arange(LENGTH), jnp.tile(INPUTS[:, None], 2))
    return f, init, xs


class TestNonFinite:
    @pytest.mark.parametrize(
        ("solver", "value", "reverse", "window"),
        [
            ("deer", jnp.nan, False, None),
            ("deer", jnp.inf, True, 5),
            ("jacobi", jnp.inf, True, None),
            ("jacobi", jnp.nan, False, 4),
        ],
    )
    def test_prefix_is_exact_and_suffix_nan(self, solver, value, reverse, window):
        t = 7
        f, init, xs = breaks_at(t, value)
        _, ys, carries = reference_scan(f, init, xs, reverse=reverse)
        (carry, outputs), solution = scan(
            f,
            init,
            xs,
            reverse=reverse,
            solver=solver,
            window=window,
            throw=False,
            return_solution=True,
        )
        assert solution.result == RESULTS.nonfinite
        done = slice(t + 1, None) if reverse else slice(t)
        rest = slice(t + 1) if reverse else slice(t, None)
        take = lambda tree, part: jax.tree.map(lambda x: x[part], tree)
        assert_close(take(solution.value, done), take(carries, done), 1e-15)
        assert_close(outputs[done], ys[done], 1e-15)
        # NaN until the sequential program would have forgotten; never a third thing.
        last = take(carries, 0 if reverse else -1)
        actual = jax.tree.leaves((take(solution.value, rest), carry))
        for x, y in zip(
            actual, jax.tree.leaves((take(carries, rest), last)), strict=True
        ):
            assert (np.isnan(x) | (np.abs(x - y) < 1e-12)).all()
        assert np.isnan(actual[1][-1 if reverse else 0]) or value == jnp.inf
        assert solution.stats["converged_prefix"] == (LENGTH - 1 - t if reverse else t)
        assert solution.position == t
        message = solution.message()
        assert message.startswith(RESULTS[RESULTS.nonfinite])
        assert f"First bad position: {t}, leaf carry['wrong']." in message

    def test_at_the_first_and_at_the_last_step(self):
        _, init, xs = breaks_at(0)

        @jax.jit
        def solve(t, init):
            f, _, _ = breaks_at(t)
            return scan(f, init, xs, solver="deer", throw=False, return_solution=True)

        for t in (0, LENGTH - 1):
            _, solution = solve(t, init)
            assert solution.result == RESULTS.nonfinite
            assert solution.stats["converged_prefix"] == t
        # And in the initial carry.
        init["fine"] = jnp.array([0.0, jnp.nan])
        _, solution = solve(-1, init)
        assert solution.result == RESULTS.nonfinite
        assert "position: 0, leaf carry['fine']" in solution.message()

    def test_in_an_output_alone_is_the_business_of_the_user(self):
        # As in `lax.scan`: the carry is right, and so is the output.
        def f(h, x):
            h = jnp.tanh(h + x)
            return h, jnp.log(h)

        xs = jnp.array([1.0, -5.0, 1.0])
        expected = lax.scan(f, jnp.zeros(()), xs)
        assert np.isnan(expected[1][1])
        assert_close(scan(f, jnp.zeros(()), xs, solver="deer"), expected)

    def test_what_follows_is_nan_even_if_the_step_recovers(self):
        def f(h, x):
            h = jnp.where(x > 0.9, 0.1, jnp.sqrt(h - x))
            return h, h

        xs = jnp.abs(jnp.sin(jnp.arange(12.0)))
        expected = lax.scan(f, jnp.array(0.0), xs)[1]
        assert 0 < np.isnan(expected).sum() < 12
        (_, ys), solution = scan(
            f, jnp.array(0.0), xs, solver="deer", throw=False, return_solution=True
        )
        assert solution.result == RESULTS.nonfinite
        first = int(np.argmax(np.isnan(expected)))
        assert solution.stats["converged_prefix"] == first
        assert_close(ys[:first], expected[:first])
        assert np.isnan(ys[first:]).all()

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_in_the_derivative_alone_is_no_failure(self, solver):
        # Zero is a state that padding leaves as it is, and no norm has a slope there.
        def f(h, x):
            h = 0.5 * h + x * jnp.linalg.norm(h)
            return h, h

        xs = jnp.array([0.0, 0.0, 1.0, 1.0])
        (_, ys), solution = scan(
            f, jnp.zeros(2), xs, solver=solver, throw=False, return_solution=True
        )
        assert_identical(ys, jnp.zeros((4, 2)))
        assert solution.result == RESULTS.successful

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_a_diverging_recurrence(self, solver):
        def square(z, _):
            z = z * z
            return z, z

        init = jnp.array([2.0, 0.5])
        expected = lax.scan(square, init, length=20)[1]
        finite = int(np.isfinite(expected).all(1).sum())
        (_, ys), solution = scan(
            square,
            init,
            length=20,
            solver=solver,
            throw=False,
            return_solution=True,
        )
        assert solution.result == RESULTS.nonfinite
        assert solution.stats["converged_prefix"] == finite
        np.testing.assert_allclose(ys[:finite], expected[:finite], rtol=1e-14)
        assert np.isnan(ys[finite:]).all()


class TestThrowing:
    """`throw=True` raises the sentence, whoever asks and for whatever."""

    WORDS = r"NaN or infinity[\s\S]*First bad position: 7, leaf carry\['wrong'\]"

    def raises(self, call, *args):
        with pytest.raises(RuntimeError, match=self.WORDS):
            jax.block_until_ready(call(*args))

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_eager_and_under_jit(self, solver):
        f, init, xs = breaks_at(7)
        solve = ft.partial(scan, f, solver=solver)
        with pytest.raises(eqx.EquinoxRuntimeError, match=self.WORDS):
            jax.block_until_ready(solve(init, xs))
        self.raises(jax.jit(solve), init, xs)

    def test_when_only_a_gradient_is_asked_for(self):
        f, init, xs = breaks_at(7)

        # Linear in the result, so that the gradient does not need its value.
        def loss(init):
            carry, ys = scan(f, init, xs, solver="deer")
            return carry["fine"].sum() + ys[:3].sum()

        self.raises(jax.grad(loss), init)
        self.raises(jax.jit(jax.grad(loss)), init)

    def test_in_windows_in_reverse_and_in_a_batch(self):
        f, init, xs = breaks_at(7)
        self.raises(ft.partial(scan, f, solver="deer", window=3), init, xs)
        self.raises(ft.partial(scan, f, solver="deer", reverse=True), init, xs)
        batch = jax.tree.map(lambda x: jnp.stack([x, x]), init)
        self.raises(jax.vmap(ft.partial(scan, f, solver="deer"), (0, None)), batch, xs)

    def test_too_few_sweeps(self):
        problem = tanh_cell(jax.random.key(0), 20)
        f, init, xs = problem.bind(), problem.init, problem.xs
        with pytest.raises(RuntimeError, match="(?s)max_steps.*sequential.*position: "):
            scan(f, init, xs, solver="jacobi", max_steps=2)

    def test_nothing_is_raised_by_a_sequential_solve(self):
        f, init, xs = breaks_at(7)
        for solver in ("sequential", "auto"):
            out, solution = scan(f, init, xs, solver=solver, return_solution=True)
            assert_identical(out, lax.scan(f, init, xs))
            assert solution.result == RESULTS.nonfinite
            assert solution.stats["converged_prefix"] == 7
            assert "position: 7, leaf carry['wrong']" in solution.message()
            assert_identical(scan(f, init, xs, solver=solver), lax.scan(f, init, xs))


# One program for all rates.
@eqx.filter_jit
def beside_chaos(rate, guess, chunk, max_steps):
    def f(carry, x):
        chaos = rate * carry["chaos"] * (1 - carry["chaos"])
        carry = {"calm": jnp.tanh(0.5 * carry["calm"] + x), "chaos": chaos}
        return carry, None

    return scan(
        f,
        {"calm": jnp.array(0.1), "chaos": jnp.array(0.3)},
        jnp.sin(jnp.arange(200)),
        solver=DEER(1e-12, 1e-12, chunk=chunk),
        guess=guess,
        max_steps=max_steps,
        throw=False,
        return_solution=True,
    )[1]


class TestChaos:
    @pytest.mark.parametrize(
        ("solver", "window"), [("deer", None), ("deer", 50), ("jacobi", None)]
    )
    def test_is_never_a_success(self, solver, window):
        solve = ft.partial(scan, logistic, length=200, solver=solver, window=window)
        init = jnp.array(0.3)
        (_, ys), solution = solve(init, throw=False, return_solution=True)
        assert solution.result != RESULTS.successful
        assert solution.stats["error_estimate"] > 1
        prefix = int(solution.stats["converged_prefix"])
        # Rounding is doubled at every step or so: the digits last for some steps.
        assert 10 < prefix < 100
        expected = lax.scan(logistic, init, length=200)[1]
        np.testing.assert_allclose(ys[:prefix], expected[:prefix], rtol=1e-9)
        assert f"position: {prefix}" in solution.message()

    def test_is_raised(self):
        with pytest.raises(RuntimeError, match="(?s)amplifies rounding.*position: "):
            scan(logistic, jnp.array(0.3), length=200, solver="deer")

    # A guess that is the answer leaves no rounding in the residuals to look at.
    def exact(self, rate, chunk=None):
        solve = ft.partial(self.solve, rate, chunk=chunk)
        solution = solve()
        again = solve(guess=solution.value)
        assert_identical(again.value, solution.value)
        assert again.stats["num_steps"] == 1
        return again

    def solve(self, rate, guess=None, chunk=None, max_steps=None):
        return beside_chaos(jnp.asarray(rate), guess, chunk, max_steps)

    @pytest.mark.parametrize("sweeps", [2, pytest.param(50, marks=pytest.mark.slow)])
    def test_nowhere_reaches_the_prefix_of_too_few_sweeps(self, sweeps):
        # Ahead of it iterates are as large as they get, and so is their rounding.
        first = self.solve(3.9, max_steps=sweeps).value["chaos"]
        assert np.abs(first).max() > 2
        assert_identical(first[:sweeps], self.solve(3.9).value["chaos"][:sweeps])

    @pytest.mark.parametrize("chunk", [None, pytest.param(60, marks=pytest.mark.slow)])
    def test_is_no_success_if_the_guess_is_the_answer(self, chunk):
        solution = self.exact(3.9, chunk)
        assert solution.result == RESULTS.ill_conditioned
        assert "leaf carry['chaos']" in solution.message()
        calm = self.exact(2.5, chunk)
        assert calm.result == RESULTS.successful

    def test_is_no_success_if_the_guess_is_the_answer_for_a_part(self):
        # The residuals of the other leaf hold rounding, and this one's do not.
        chaotic = self.solve(3.9).value
        guess = {**chaotic, "calm": chaotic["calm"] + 1e-3}
        solution = self.solve(3.9, guess=guess)
        assert_identical(solution.value["chaos"], chaotic["chaos"])
        assert solution.result == RESULTS.ill_conditioned

    def test_in_one_sample_changes_no_bit_of_the_others(self):
        rates = jnp.array([2.5, 2.9, 3.9])
        exact = jax.vmap(self.solve)(rates).value
        calm = {name: 0 * value for name, value in exact.items()}
        guesses = jax.tree.map(lambda c, e: c.at[2].set(e[2]), calm, exact)
        beside = jax.vmap(self.solve)(rates, guesses)
        alone = jax.vmap(self.solve)(rates.at[2].set(2.7), calm)
        unstable = beside.result == RESULTS.ill_conditioned
        np.testing.assert_array_equal(unstable, [False, False, True])
        assert (alone.result == RESULTS.successful).all()
        first = jax.tree.map(lambda x: x[:2], (beside.value, beside.stats))
        assert_identical(
            first, jax.tree.map(lambda x: x[:2], (alone.value, alone.stats))
        )


class TestMaxSteps:
    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("sweeps", [1, 7])
    def test_leave_that_many_states_exact(self, solver, sweeps):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        f, init, xs = problem.bind(), problem.init, problem.xs
        *_, carries = reference_scan(f, init, xs)
        shape = (LENGTH, 3)
        guesses = jnp.stack(
            [
                jnp.zeros(shape),
                jnp.full(shape, 1e6),
                jnp.full(shape, jnp.nan),
                jnp.full(shape, -1e300),
                5 * jax.random.normal(jax.random.key(2), shape),
            ]
        )

        @jax.vmap
        def solve(guess):
            return scan(
                f,
                init,
                xs,
                solver=solver,
                guess=guess,
                max_steps=sweeps,
                throw=False,
                return_solution=True,
            )[1]

        solutions = solve(guesses)
        for i in range(len(guesses)):
            solution = jax.tree.map(lambda x, i=i: x[i], solutions)
            assert_close(solution.value[:sweeps], carries[:sweeps], 1e-15)
            assert solution.stats["converged_prefix"] >= sweeps
            assert solution.stats["num_steps"] <= sweeps
            assert np.isfinite(solution.value).all()
            exact = np.abs(solution.value - carries).max() < 1e-11
            # Nothing that is wrong is called a success.
            assert exact or solution.result == RESULTS.max_steps_reached

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_and_final_to_the_last_bit(self, solver):
        # Chaos would show any bit that is still to change.
        expected = lax.scan(logistic, jnp.array(0.3), length=40)[1]
        ys = {}
        for sweeps in (9, 25):
            (_, ys[sweeps]), solution = scan(
                logistic,
                jnp.array(0.3),
                length=40,
                solver=solver,
                max_steps=sweeps,
                throw=False,
                return_solution=True,
            )
            assert solution.result == RESULTS.max_steps_reached
        np.testing.assert_allclose(ys[9][:9], expected[:9], rtol=1e-12)
        assert_identical(ys[25][:9], ys[9][:9])

    def test_are_counted_in_every_window(self):
        problem = tanh_cell(jax.random.key(1), LENGTH)
        f, init, xs = problem.bind(), problem.init, problem.xs
        carry, _ = scan(f, init, xs, solver="jacobi", max_steps=4, window=4)
        assert_close(carry, lax.scan(f, init, xs)[0])


class TestNeighbours:
    """In a `vmap` no sample changes a bit of another."""

    @staticmethod
    @ft.cache
    def batch():
        problem = gru(jax.random.key(3), LENGTH)

        def loss(params, init, xs):
            f = problem.bind(params)
            (_, ys), solution = scan(
                f, init, xs, solver="deer", throw=False, return_solution=True
            )
            return (ys**2).sum(), (ys, solution.value, solution.stats)

        batched = jax.vmap(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
        repeat = lambda tree, n: jax.tree.map(lambda x: jnp.stack([x] * n), tree)
        inits = jax.random.normal(jax.random.key(4), (4, 3))
        xs = jax.random.normal(jax.random.key(5), (4, LENGTH, 2))
        return jax.jit(batched), (repeat(problem.params, 4), inits, xs)

    def others(self, tree):
        return jax.tree.map(lambda x: jnp.delete(x, 2, axis=0), tree)

    @pytest.mark.parametrize("content", [jnp.nan, jnp.inf, 0.0, 1e200])
    def test_what_one_sample_holds_is_its_own_affair(self, content):
        solve, (params, inits, xs) = self.batch()
        clean = solve(params, inits, xs)
        spoilt = solve(params, inits, xs.at[2, 3].set(content))
        assert_identical(self.others(spoilt), self.others(clean))

    def test_a_permutation_permutes_the_bits(self):
        solve, arguments = self.batch()
        order = jnp.array([2, 0, 3, 1])
        permute = lambda tree: jax.tree.map(lambda x: x[order], tree)
        assert_identical(solve(*permute(arguments)), permute(solve(*arguments)))

    def test_alone_a_sample_is_the_same_to_rounding(self):
        solve, arguments = self.batch()
        alone = jax.tree.map(lambda x: x[1:2], arguments)
        both = jax.tree.map(lambda x: x[1:2], solve(*arguments))
        (_, (ys, value, _)), gradients = solve(*alone)
        (_, (expected, expected_value, _)), expected_gradients = both
        assert_close(
            (ys, value, gradients), (expected, expected_value, expected_gradients)
        )


class TestConditioning:
    """A recurrence that forgets, or only adds up, is not called unstable."""

    def test_of_a_network(self):
        problem = lstm(jax.random.key(6), 1000)
        _, solution = scan(
            problem.bind(),
            problem.init,
            problem.xs,
            solver="deer",
            return_solution=True,
        )
        assert solution.result == RESULTS.successful
        assert solution.stats["error_estimate"] < 1e-13

    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(jnp.float64, 1e-10), (jnp.float32, 0.1)]
    )
    def test_of_a_cumulative_sum(self, dtype, tolerance):
        xs = (jnp.sin(jnp.arange(10_000.0)) + 1).astype(dtype)
        f = lambda total, x: (total + x, total + x)
        (_, ys), solution = scan(
            f, jnp.zeros((), dtype), xs, solver="deer", return_solution=True
        )
        assert solution.result == RESULTS.successful
        assert solution.stats["num_steps"] <= 2
        np.testing.assert_allclose(ys, np.cumsum(xs.astype(float)), atol=tolerance)

    def test_of_a_rotation(self):
        turn = jnp.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])

        def f(z, _):
            z = turn @ z
            return z, z

        (_, ys), solution = scan(
            f, jnp.array([1.0, 0.0]), length=1000, solver="deer", return_solution=True
        )
        angles = np.arange(1, 1001)
        np.testing.assert_allclose(ys[:, 0], np.cos(angles), atol=1e-11)
        assert solution.stats["num_steps"] <= 2

    def test_in_narrow_dtypes(self):
        problem = tanh_cell(jax.random.key(6), 100, dtype=jnp.bfloat16)
        _, solution = scan(
            problem.bind(),
            problem.init,
            problem.xs,
            solver="deer",
            return_solution=True,
        )
        assert solution.result == RESULTS.successful


class TestResiduals:
    def test_of_a_success_are_within_tolerance(self):
        problem = gru(jax.random.key(7), 50)
        f = problem.bind()
        inits = jax.random.normal(jax.random.key(8), (5, 3))

        @jax.jit
        def solve(tolerance):
            def one(init):
                return scan(
                    f,
                    init,
                    problem.xs,
                    solver=DEER(tolerance, tolerance),
                    throw=False,
                    return_solution=True,
                )[1]

            return jax.vmap(one)(inits)

        states = jax.vmap(jax.vmap(lambda z, x: f(z, x)[0]), (0, None))
        for tolerance in (1e-3, 0.0):
            solution = solve(tolerance)
            successful = solution.result._value == 0
            residual = solution.stats["residual"]
            assert np.all(residual[successful] <= 1)
            if tolerance:
                assert successful.all()
                # And the residual is what it is said to be.
                z = jnp.concatenate([inits[:, None], solution.value], 1)
                r = jnp.abs(states(z[:, :-1], problem.xs) - z[:, 1:])
                unit = tolerance * (1 + jnp.abs(z[:, 1:]))
                np.testing.assert_allclose(
                    (r / unit).max((1, 2)), residual, atol=1e-12 / tolerance
                )


def polynomial(params, z, x):
    """A small step that may contract, expand or blow up, as `params` say."""
    linear, quadratic, gain = params
    z = linear @ z + quadratic @ (z * z) + jnp.sin(gain * z) + x
    return z, z


@ft.partial(jax.jit, static_argnames="solver")
def solve_polynomial(params, init, xs, guess, solver):
    f = ft.partial(polynomial, params)
    (_, ys), solution = scan(
        f,
        init,
        xs,
        solver=solver,
        guess=guess,
        throw=False,
        return_solution=True,
    )
    return ys, solution, lax.scan(f, init, xs)[1]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.sampled_from([1, 12]),
    solver=st.sampled_from(SOLVERS),
    scale=st.sampled_from([0.1, 1.0, 3.0, 30.0]),
    awful=st.sampled_from([0.0, 1.0, 1e5, 1e200, np.nan]),
)
def test_as_many_sweeps_as_steps_are_always_enough(seed, length, solver, scale, awful):
    random = np.random.default_rng(seed)
    params = (
        scale * random.normal(size=(2, 2)),
        0.3 * scale * random.normal(size=(2, 2)),
        scale * random.normal(),
    )
    init, xs = random.normal(size=2), random.normal(size=(length, 2))
    guess = awful * random.normal(size=(length, 2))
    ys, solution, expected = solve_polynomial(params, init, xs, guess, solver)
    stats = solution.stats
    assert solution.result != RESULTS.max_steps_reached
    assert stats["num_steps"] <= length
    finite = np.isfinite(expected).all(1)
    good = length if finite.all() else int(np.argmin(finite))
    if good < length:
        assert solution.result == RESULTS.nonfinite
        assert stats["converged_prefix"] == good
        assert np.isnan(ys[good:]).all()
    if stats["error_estimate"] < 1e-10:
        unit = np.abs(expected[:good]).max(initial=1)
        np.testing.assert_allclose(ys[:good], expected[:good], rtol=0, atol=1e-9 * unit)
    if solution.result == RESULTS.successful:
        assert stats["residual"] <= 1
        assert stats["converged_prefix"] == length


class TestSlowChains:
    """Small residuals add up where a chain forgets slowly."""

    @pytest.mark.parametrize("window", [None, 50])
    def test_jacobi_goes_on_until_the_states_are_right(self, window):
        def f(h, _):
            h = h + 1e-3 * (1 - h)
            return h, h

        expected = lax.scan(f, jnp.zeros(()), length=200)[1]
        (_, ys), solution = scan(
            f,
            jnp.zeros(()),
            length=200,
            solver="jacobi",
            rtol=1e-3,
            atol=1e-3,
            window=window,
            return_solution=True,
        )
        assert solution.result == RESULTS.successful
        np.testing.assert_allclose(ys, expected, atol=2e-3)

    def test_too_few_sweeps_are_no_success(self):
        def f(h, _):
            h = h + 1e-3 * (1 - h)
            return h, h

        _, solution = scan(
            f,
            jnp.zeros(()),
            length=200,
            solver="jacobi",
            rtol=1e-3,
            atol=1e-3,
            max_steps=20,
            throw=False,
            return_solution=True,
        )
        assert solution.result != RESULTS.successful
        assert solution.stats["converged_prefix"] < 200
