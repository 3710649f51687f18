"""What a result promises: failures are never successes, and the prefix is right."""

import functools as ft

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils import _pytree as pytree

from parafix.core.testing.torch import (
    assert_close,
    assert_identical,
    logistic,
    reference_scan,
    tanh_cell,
)
from parafix.core.torch import RESULTS
from parafix.deer.torch import DEER, scan


DOUBLE = torch.float64
SOLVERS = ("deer", "jacobi")
LENGTH = 12
INPUTS = torch.linspace(-1, 1, LENGTH, dtype=DOUBLE)


def breaks_at(t, value=torch.nan):
    """A step of two leaves, the second of which turns bad at time `t`."""

    def f(carry, x):
        time, x = x
        good = torch.tanh(0.5 * carry["fine"] + x)
        bad = torch.tanh(0.5 * carry["wrong"] + carry["fine"][:, 0])
        bad = torch.where(time == t, value, bad)
        return {"fine": good, "wrong": bad}, good.sum(-1) + bad

    init = {"fine": torch.zeros(1, 2, dtype=DOUBLE), "wrong": torch.zeros(1).double()}
    xs = (torch.arange(LENGTH)[:, None], INPUTS[:, None, None].expand(-1, 1, 2))
    return f, init, xs


def take(tree, part):
    return pytree.tree_map(lambda x: x[part], tree)


class TestNonFinite:
    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize("window", [None, 5])
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
        assert_close(take(solution.value, done), take(carries, done), 1e-15)
        assert_close(outputs[done], ys[done], 1e-15)
        # NaN until the sequential program would have forgotten; never a third thing.
        last = take(carries, 0 if reverse else -1)
        actual = pytree.tree_leaves((take(solution.value, rest), carry))
        expected = pytree.tree_leaves((take(carries, rest), last))
        for x, y in zip(actual, expected, strict=True):
            assert (x.isnan() | ((x - y).abs() < 1e-12)).all()
        assert solution.stats["converged_prefix"] == (LENGTH - 1 - t if reverse else t)
        assert solution.position == t
        message = solution.message()
        assert message.startswith(RESULTS[RESULTS.nonfinite])
        assert f"First bad position: {t}, leaf carry['wrong']." in message

    @pytest.mark.parametrize("t", [0, LENGTH - 1])
    def test_at_the_first_and_at_the_last_step(self, t):
        f, init, xs = breaks_at(t)
        _, solution = scan(
            f, init, xs, solver="deer", throw=False, return_solution=True
        )
        assert solution.result == RESULTS.nonfinite
        assert solution.stats["converged_prefix"] == t

    def test_in_the_initial_carry(self):
        f, init, xs = breaks_at(-1)
        init["fine"] = torch.tensor([[0.0, torch.nan]], dtype=DOUBLE)
        _, solution = scan(
            f, init, xs, solver="deer", throw=False, return_solution=True
        )
        assert solution.result == RESULTS.nonfinite
        assert "position: 0, leaf carry['fine']" in solution.message()

    def test_in_an_output_alone_is_the_business_of_the_user(self):
        # As in the loop: the carry is right, and so is the output.
        def f(h, x):
            h = torch.tanh(h + x)
            return h, torch.log(h)

        xs, init = (
            torch.tensor([[1.0], [-5.0], [1.0]]).double(),
            torch.zeros(1).double(),
        )
        expected = reference_scan(f, init, xs)[:2]
        assert expected[1][1].isnan()
        assert_close(scan(f, init, xs, solver="deer"), expected)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_what_follows_is_nan_even_if_the_step_recovers(self, solver):
        def f(h, x):
            h = torch.where(x > 0.9, 0.1, torch.sqrt(h - x))
            return h, h

        xs = torch.sin(torch.arange(12.0, dtype=DOUBLE)).abs()[:, None]
        init = torch.zeros(1, dtype=DOUBLE)
        expected = reference_scan(f, init, xs)[1]
        assert 0 < expected.isnan().sum() < 12
        (_, ys), solution = scan(
            f, init, xs, solver=solver, throw=False, return_solution=True
        )
        assert solution.result == RESULTS.nonfinite
        first = int(expected.isnan().int().argmax())
        assert solution.stats["converged_prefix"] == first
        assert_close(ys[:first], expected[:first])
        assert ys[first:].isnan().all()

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_in_the_derivative_alone_is_no_failure(self, solver):
        # Zero is a state that padding leaves as it is, and no root has a slope there.
        def f(h, x):
            h = 0.5 * h + x * torch.sqrt((h**2).sum(-1, keepdim=True))
            return h, h

        xs = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=DOUBLE)[:, None, None]
        init = torch.zeros(1, 2, dtype=DOUBLE)
        (_, ys), solution = scan(
            f, init, xs, solver=solver, throw=False, return_solution=True
        )
        assert_identical(ys, torch.zeros(4, 1, 2, dtype=DOUBLE))
        assert solution.result == RESULTS.successful

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_a_diverging_recurrence(self, solver):
        square = lambda z, _: (z**2,) * 2
        init = torch.tensor([[2.0, 0.5]], dtype=DOUBLE)
        expected = reference_scan(square, init, None, 20)[1]
        finite = int(expected.isfinite().all(-1).sum())
        (_, ys), solution = scan(
            square, init, length=20, solver=solver, throw=False, return_solution=True
        )
        assert solution.result == RESULTS.nonfinite
        assert solution.stats["converged_prefix"] == finite
        np.testing.assert_allclose(ys[:finite], expected[:finite], rtol=1e-14)
        assert ys[finite:].isnan().all()


class TestThrowing:
    """`throw=True` raises the sentence, whoever asks and for whatever."""

    WORDS = r"NaN or infinity[\s\S]*First bad position: 7, leaf carry\['wrong'\]"

    def raises(self, call, *args):
        with pytest.raises(RuntimeError, match=self.WORDS):
            call(*args)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_in_the_call(self, solver):
        f, init, xs = breaks_at(7)
        self.raises(ft.partial(scan, f, solver=solver), init, xs)

    def test_when_only_a_gradient_is_asked_for(self):
        f, init, xs = breaks_at(7)

        def loss(init):
            carry, ys = scan(f, init, xs, solver="deer")
            return carry["fine"].sum() + ys[:3].sum()

        self.raises(torch.func.grad(loss), init)

    def test_in_windows_in_reverse_and_in_a_batch(self):
        f, init, xs = breaks_at(7)
        self.raises(ft.partial(scan, f, solver="deer", window=3), init, xs)
        self.raises(ft.partial(scan, f, solver="deer", reverse=True), init, xs)
        batch = pytree.tree_map(lambda x: torch.stack([x, x]), init)
        solve = ft.partial(scan, f, solver="deer")
        self.raises(torch.func.vmap(solve, (0, None)), batch, xs)

    def test_says_how_many_samples_failed(self):
        f, init, xs = breaks_at(7)
        init = pytree.tree_map(lambda x: x.expand(5, *x.shape[1:]), init)
        xs = (torch.where(torch.arange(5) == 2, xs[0], 0), xs[1].expand(-1, 5, 2))
        with pytest.raises(RuntimeError, match="1 of 5 samples failed; sample 2: "):
            scan(f, init, xs, solver="deer")

    def test_too_few_sweeps(self):
        problem = tanh_cell(0, 20)
        f, init, xs = problem.bind(), problem.init, problem.xs
        with pytest.raises(RuntimeError, match="(?s)max_steps.*sequential.*position: "):
            scan(f, init, xs, solver="jacobi", max_steps=2)

    def test_nothing_is_raised_by_a_sequential_solve(self):
        f, init, xs = breaks_at(7)
        expected = reference_scan(f, init, xs)[:2]
        for solver in ("sequential", "auto"):
            out, solution = scan(f, init, xs, solver=solver, return_solution=True)
            assert_identical(out, expected)
            assert solution.result == RESULTS.nonfinite
            assert solution.stats["converged_prefix"] == 7
            assert "position: 7, leaf carry['wrong']" in solution.message()
            assert_identical(scan(f, init, xs, solver=solver), expected)


class TestChaos:
    INIT = torch.full((1, 1), 0.3, dtype=DOUBLE)

    @pytest.mark.parametrize(
        ("solver", "window"), [("deer", None), ("deer", 50), ("jacobi", None)]
    )
    @pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
    def test_is_never_a_success(self, solver, window, dtype):
        init = self.INIT.to(dtype)
        (_, ys), solution = scan(
            logistic,
            init,
            length=200,
            solver=solver,
            window=window,
            throw=False,
            return_solution=True,
        )
        assert solution.result != RESULTS.successful
        assert solution.stats["error_estimate"] > 1
        prefix = int(solution.stats["converged_prefix"])
        # Rounding is doubled at every step or so: the digits last for some steps.
        assert 5 < prefix < 100
        expected = reference_scan(logistic, init, None, 200)[1]
        rtol = 1e-9 if dtype == DOUBLE else 1e-3
        np.testing.assert_allclose(ys[:prefix], expected[:prefix], rtol=rtol)
        assert f"position: {prefix}" in solution.message()

    def test_is_raised(self):
        with pytest.raises(RuntimeError, match="(?s)amplifies rounding.*position: "):
            scan(logistic, self.INIT, length=200, solver="deer")

    # A guess that is the answer leaves no rounding in the residuals to look at.
    def exact(self, rate, chunk=None):
        solve = ft.partial(self.solve, rate, chunk=chunk)
        solution = solve()
        again = solve(guess=solution.value)
        assert_identical(again.value, solution.value)
        assert (again.stats["num_steps"] == 1).all()
        return again

    def solve(self, rate, guess=None, length=100, chunk=None, max_steps=None):
        rate = torch.as_tensor(rate, dtype=DOUBLE).reshape(-1)

        def f(carry, x):
            chaos = rate * carry["chaos"] * (1 - carry["chaos"])
            carry = {"calm": torch.tanh(0.5 * carry["calm"] + x), "chaos": chaos}
            return carry, None

        init = {"calm": torch.full_like(rate, 0.1), "chaos": torch.full_like(rate, 0.3)}
        return scan(
            f,
            init,
            torch.sin(torch.arange(length, dtype=DOUBLE)),
            solver=DEER(1e-12, 1e-12, chunk=chunk),
            guess=guess,
            max_steps=max_steps,
            throw=False,
            return_solution=True,
        )[1]

    @pytest.mark.parametrize("sweeps", [2, 50])
    def test_nowhere_reaches_the_prefix_of_too_few_sweeps(self, sweeps):
        # Ahead of it iterates are as large as they get, and so is their rounding.
        first = self.solve(3.9, max_steps=sweeps).value["chaos"]
        assert first.abs().max() > 2
        assert_identical(first[:sweeps], self.solve(3.9).value["chaos"][:sweeps])

    @pytest.mark.parametrize("chunk", [None, 60])
    def test_is_no_success_if_the_guess_is_the_answer(self, chunk):
        solution = self.exact(3.9, chunk)
        assert solution.result == RESULTS.ill_conditioned
        assert "leaf carry['chaos']" in solution.message()
        assert self.exact(2.5, chunk).result == RESULTS.successful

    def test_is_no_success_if_the_guess_is_the_answer_for_a_part(self):
        # The residuals of the other leaf hold rounding, and this one's do not.
        chaotic = self.solve(3.9).value
        guess = {**chaotic, "calm": chaotic["calm"] + 1e-3}
        solution = self.solve(3.9, guess=guess)
        assert_identical(solution.value["chaos"], chaotic["chaos"])
        assert solution.result == RESULTS.ill_conditioned

    def test_in_one_sample_changes_no_bit_of_the_others(self):
        rates = [2.5, 2.9, 3.9]
        exact = self.solve(rates).value
        calm = {name: 0 * value for name, value in exact.items()}
        last = torch.arange(3) == 2
        guesses = pytree.tree_map(lambda c, e: torch.where(last, e, c), calm, exact)
        beside = self.solve(rates, guesses)
        alone = self.solve([2.5, 2.9, 2.7], calm)
        unstable = beside.result == RESULTS.ill_conditioned
        assert unstable.tolist() == [False, False, True]
        assert (alone.result == RESULTS.successful).all()
        assert_identical(
            pytree.tree_map(lambda x: x[:, :2], beside.value),
            pytree.tree_map(lambda x: x[:, :2], alone.value),
        )
        assert_identical(take(beside.stats, slice(2)), take(alone.stats, slice(2)))


class TestMaxSteps:
    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("sweeps", [1, 7])
    @pytest.mark.parametrize("value", [0.0, 1e6, torch.nan, -1e300, None])
    def test_leave_that_many_states_exact(self, solver, sweeps, value):
        problem = tanh_cell(1, LENGTH)
        f, init, xs = problem.bind(), problem.init, problem.xs
        *_, carries = reference_scan(f, init, xs)
        random = torch.Generator().manual_seed(2)
        guess = 5 * torch.randn(LENGTH, 2, 3, dtype=DOUBLE, generator=random)
        guess = guess if value is None else torch.full_like(guess, value)
        _, solution = scan(
            f,
            init,
            xs,
            solver=solver,
            guess=guess,
            max_steps=sweeps,
            throw=False,
            return_solution=True,
        )
        assert_close(solution.value[:sweeps], carries[:sweeps], 1e-15)
        assert (solution.stats["converged_prefix"] >= sweeps).all()
        assert (solution.stats["num_steps"] <= sweeps).all()
        assert solution.value.isfinite().all()
        exact = (solution.value - carries).abs().amax((0, 2)) < 1e-11
        # Nothing that is wrong is called a success.
        assert (exact | (solution.result == RESULTS.max_steps_reached)).all()

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_and_final_to_the_last_bit(self, solver):
        # Chaos would show any bit that is still to change.
        init = TestChaos.INIT
        expected = reference_scan(logistic, init, None, 40)[1]
        ys = {}
        for sweeps in (9, 25):
            (_, ys[sweeps]), solution = scan(
                logistic,
                init,
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
        problem = tanh_cell(1, LENGTH)
        f, init, xs = problem.bind(), problem.init, problem.xs
        actual = scan(f, init, xs, solver="jacobi", max_steps=4, window=4)
        assert_close(actual, reference_scan(f, init, xs)[:2])


class TestNeighbours:
    """A sample among others is the same as ever, and so is its gradient."""

    def solve(self, init, xs, solver):
        init, xs = init.clone().requires_grad_(), xs.clone().requires_grad_()
        weights = torch.tensor([[0.9, -0.6], [0.4, 0.8]], dtype=DOUBLE)

        def f(h, x):
            # Sums of products, since those of matrices round by where a row lies.
            h = torch.tanh((h.unsqueeze(-2) * weights).sum(-1) + x)
            return h, h.sum(-1)

        (carry, ys), solution = scan(
            f, init, xs, solver=solver, throw=False, return_solution=True
        )
        total = (carry**2).sum() + (ys**2).sum()
        of_init, of_xs = torch.autograd.grad(total, (init, xs))
        by_time = (ys, solution.value, of_xs)
        return [
            *(x.movedim(1, 0) for x in by_time),
            *(carry, of_init, solution.result),
            *solution.stats.values(),
        ]

    @pytest.mark.parametrize("solver", SOLVERS)
    @settings(max_examples=5)
    @given(st.integers(0, 63), st.integers(0, 63), st.integers(0, 9))
    def test_do_not_reach_a_sample(self, solver, hard, broken, seed):
        random = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, dtype=DOUBLE, generator=random)
        init, xs = normal(64, 2), normal(20, 64, 2)
        calm = self.solve(init, xs, solver)
        rough = init.clone(), xs.clone()
        rough[0][hard] = 1e200
        rough[1][10, broken] = torch.nan
        actual = self.solve(*rough, solver)
        others = [i for i in range(64) if i not in (hard, broken)]
        for x, y in zip(actual, calm, strict=True):
            assert_identical(x[others], y[others])
        order = torch.randperm(64, generator=random)
        permuted = self.solve(rough[0][order], rough[1][:, order], solver)
        for x, y in zip(permuted, actual, strict=True):
            assert_identical(x, y[order])
