"""`solver="auto"`: the loop, or sweeps that return the same numbers."""

import pytest
import torch

from parafix.core.testing.torch import (
    assert_close,
    assert_identical,
    CallCounter,
    gru,
    reference_scan,
)
from parafix.core.torch import RESULTS
from parafix.deer.torch import Choice, choose, scan


LONG = 1200


def arguments_of(length, **options):
    problem = gru(0, length, **options)
    return problem.bind(), problem.init, problem.xs


class TestSequential:
    def test_is_the_loop(self):
        f, init, xs = arguments_of(50)
        counter = CallCounter(f)
        assert_identical(scan(counter, init, xs), reference_scan(f, init, xs)[:2])
        assert counter.calls == 50

    def test_asking_for_a_solution_changes_no_number(self):
        f, init, xs = arguments_of(50)
        *expected, carries = reference_scan(f, init, xs)
        for solver in ("auto", "sequential"):
            out, solution = scan(f, init, xs, solver=solver, return_solution=True)
            assert_identical(out, tuple(expected))
            assert_identical(solution.value, carries)
            assert (solution.result == RESULTS.successful).all()
            assert (solution.stats["error_estimate"] < 1e-14).all()

    def test_gradients_pass_through_a_solution(self):
        f, init, xs = arguments_of(10)
        init.requires_grad_()
        (_, ys), solution = scan(f, init, xs, return_solution=True)
        actual = torch.autograd.grad((ys**2).sum() + solution.value.sum(), init)
        _, ys, carries = reference_scan(f, init, xs)
        expected = torch.autograd.grad((ys**2).sum() + carries.sum(), init)
        assert_identical(actual, expected)


class TestSweeps:
    def test_return_the_same_numbers(self):
        f, init, xs = arguments_of(LONG, samples=2)
        counter = CallCounter(f)
        actual = scan(counter, init, xs)
        assert counter.calls < 30
        assert_close(actual, reference_scan(f, init, xs)[:2])

    @pytest.mark.parametrize(
        "hidden",
        [
            lambda h, x: h + 1 if h.sum() > 1e9 else h,
            lambda h, x: h + 0 * float(x.sum()),
            lambda h, x: torch.from_numpy(h.numpy() / 1),
        ],
        ids=["if", "float", "numpy"],
    )
    def test_what_they_cannot_serve_runs_sequentially(self, hidden):
        f = lambda h, x: (torch.tanh(hidden(h, x) + x),) * 2
        init, xs = torch.zeros(1, 2), torch.ones(LONG, 1, 2)
        assert_identical(scan(f, init, xs), reference_scan(f, init, xs)[:2])

    def test_integers_that_depend_on_floats_run_sequentially(self):
        def f(carry, x):
            h, hits = carry
            h = torch.tanh(0.5 * h + x)
            return (h, hits + (h > 0).sum(-1)), h

        init = (torch.zeros(1, 2), torch.tensor([0]))
        xs = torch.ones(LONG, 1, 2)
        assert_identical(scan(f, init, xs), reference_scan(f, init, xs)[:2])

    def test_exceptions_of_the_step_are_shown(self):
        def f(h, x):
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            scan(f, torch.zeros(1, 2), torch.ones(LONG, 1, 2))


class TestChoices:
    def test_on_a_cpu_long_and_small_ones_are_parallel(self):
        assert choose(10_000, 8, "cpu").solver == "deer"
        assert choose(10_000, 2, "cpu", 4).solver == "deer"
        assert choose(10_000, 2, "cpu", 16).solver == "sequential"
        assert choose(10_000, 16, "cpu").solver == "sequential"
        assert choose(300, 2, "cpu").solver == "sequential"

    @pytest.mark.parametrize("platform", ["cuda", "xpu"])
    def test_elsewhere_short_wide_and_empty_ones_are_sequential(self, platform):
        assert choose(10_000, 4, platform, 64).solver == "deer"
        assert choose(10, 4, platform).solver == "sequential"
        assert choose(10_000, 512, platform).solver == "sequential"
        assert choose(10_000, 0, platform).solver == "sequential"
        assert choose(0, 4, platform).solver == "sequential"

    def test_reasons_are_sentences_that_name_the_cause(self):
        assert "10 steps" in choose(10, 4, "cpu").reason
        assert "64 numbers" in choose(10_000, 4, "cpu", 16).reason
        assert "512" in choose(10_000, 512, "cuda").reason
        choice = choose(10_000, 4, "cuda")
        assert isinstance(choice, Choice)
        assert "10000" in choice.reason
