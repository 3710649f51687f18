"""What is done where sweeps fail, and where they start."""

import pytest
import torch

from parafix.core.testing.torch import logistic, reference_scan, tanh_cell
from parafix.core.torch import RESULTS
from parafix.deer.torch import scan


LENGTH = 40


def assert_near(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def solve(problem, **options):
    f = problem.bind()
    return scan(f, problem.init, problem.xs, return_solution=True, **options)


class TestFallback:
    @pytest.mark.parametrize(
        ("solver", "reverse", "window"),
        [("deer", False, None), ("jacobi", True, None), ("deer", False, 15)],
    )
    def test_goes_on_from_the_prefix(self, solver, reverse, window):
        problem = tanh_cell(1, LENGTH)
        options = {"solver": solver, "reverse": reverse, "window": window}
        without = solve(problem, max_steps=2, throw=False, **options)[1]
        assert (without.result == RESULTS.max_steps_reached).all()
        assert (without.stats["sequential_from"] == LENGTH).all()
        out, solution = solve(problem, max_steps=2, fallback="sequential", **options)
        f, init, xs = problem.bind(), problem.init, problem.xs
        assert_near(out, reference_scan(f, init, xs, reverse=reverse)[:2])
        assert (solution.result == RESULTS.successful).all()
        stats, prefix = solution.stats, without.stats["converged_prefix"]
        assert (stats["sequential_from"] == prefix).all()
        assert (stats["converged_prefix"] == LENGTH).all()
        assert (stats["residual"] <= 1).all()
        assert ((prefix >= 2) & (prefix < LENGTH)).all()

    def test_is_not_run_where_nothing_is_wrong(self):
        problem = tanh_cell(1, LENGTH)
        plain = solve(problem, solver="deer")
        safe = solve(problem, solver="deer", fallback="sequential")
        assert_near(safe[0], plain[0], 0)
        assert (safe[1].stats["sequential_from"] == LENGTH).all()
        assert (safe[1].stats["num_evals"] == plain[1].stats["num_evals"]).all()

    def test_gradients_are_those_of_the_loop(self):
        problem = tanh_cell(1, LENGTH)
        xs = problem.xs.requires_grad_()
        init = problem.init.requires_grad_()
        f = problem.bind()
        options = {"solver": "deer", "max_steps": 3, "fallback": "sequential"}
        found = []
        for out in (scan(f, init, xs, **options), reference_scan(f, init, xs)):
            found.append(torch.autograd.grad((out[1] ** 2).sum(), (init, xs)))
        assert_near(*found)

    @pytest.mark.parametrize("max_steps", [None, 3])
    def test_of_a_chaotic_chain_is_the_loop_from_the_beginning(self, max_steps):
        # From a state that is right to 1e-12 only, all digits would be lost.
        init = torch.tensor([[0.3], [0.0]], dtype=torch.float64)
        options = {"length": 200, "solver": "deer", "max_steps": max_steps}
        options["return_solution"] = True
        failed = scan(logistic, init, throw=False, **options)[1]
        assert failed.result[0] != RESULTS.successful
        out, solution = scan(logistic, init, fallback="sequential", **options)
        expected = reference_scan(logistic, init, length=200)
        assert_near(out, expected[:2], 0)
        assert (solution.result == RESULTS.successful).all()
        assert solution.stats["sequential_from"].tolist() == [0, 200]
        # Still, it says what it is.
        assert solution.stats["error_estimate"][0] > 1

    def test_of_a_chaotic_chain_in_windows_does_not_pretend(self):
        # The first windows are solved by sweeps, and their rounding is carried on.
        solution = scan(
            logistic,
            torch.full((1, 1), 0.3, dtype=torch.float64),
            length=200,
            solver="deer",
            window=20,
            throw=False,
            fallback="sequential",
            return_solution=True,
        )[1]
        assert solution.result == RESULTS.ill_conditioned

    @pytest.mark.parametrize("resets", [None, torch.arange(LENGTH) % 13 == 0])
    def test_a_nan_is_still_a_nan(self, resets):
        problem = tanh_cell(1, LENGTH)
        problem.xs[20, 0] = torch.nan
        options = {"resets": resets, "throw": False}
        (_, ys), solution = solve(
            problem, solver="jacobi", max_steps=3, fallback="sequential", **options
        )
        (_, expected), _ = solve(problem, solver="sequential", **options)
        torch.testing.assert_close(ys, expected, rtol=0, atol=1e-9, equal_nan=True)
        assert torch.isnan(ys[20, 0]).all()
        assert solution.result[0] == RESULTS.nonfinite
        assert (solution.result[1:] == RESULTS.successful).all()
        assert solution.position[0] == 20

    @pytest.mark.parametrize("last", [1.0, torch.nan])
    def test_small_residuals_add_up(self, last):
        # Forty that are within tolerance, one by one; their sum is not.
        xs = torch.full((60, 1, 1), 1e-12, dtype=torch.float64)
        xs[40:] = last
        f = lambda z, x: (z + x,) * 2
        expected = xs.cumsum(0)
        for options in (
            {"max_steps": 3},
            {"max_steps": 3, "fallback": "sequential"},
            {},
        ):
            (_, ys), solution = scan(
                f,
                torch.zeros(1, 1, dtype=torch.float64),
                xs,
                solver="jacobi",
                throw=False,
                return_solution=True,
                **options,
            )
            right = (ys - expected).abs() <= 2e-12 * (1 + expected.abs())
            assert right[: int(solution.stats["converged_prefix"])].all()
            if last != last:
                assert solution.result != RESULTS.successful
            elif "fallback" in options:
                assert solution.result == RESULTS.successful

    def test_another_word_is_an_error(self):
        problem = tanh_cell(1, 5)
        for solver in ("deer", "sequential"):
            with pytest.raises(ValueError, match="`fallback`.*'loop'"):
                solve(problem, solver=solver, fallback="loop")


class TestGuess:
    def test_a_solution(self):
        problem = tanh_cell(1, LENGTH)
        for reverse in (False, True):
            options = {"solver": "deer", "reverse": reverse}
            out, solution = solve(problem, **options)
            again, warm = solve(problem, guess=solution, **options)
            assert_near(again, out)
            few, many = (each.stats["num_steps"] for each in (warm, solution))
            assert (few < many).all()

    @pytest.mark.parametrize("guess", ["init", "step"])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_name(self, guess, reverse):
        problem = tanh_cell(1, LENGTH)
        f, init, xs = problem.bind(), problem.init, problem.xs
        options = {"solver": "jacobi", "reverse": reverse}
        out, solution = solve(problem, guess=guess, **options)
        assert_near(out, reference_scan(f, init, xs, reverse=reverse)[:2])
        carries = init.expand(LENGTH, *init.shape)
        if guess == "step":
            carries = torch.stack([f(init, x)[0] for x in xs])
        same = solve(problem, guess=carries, **options)[1]
        steps = (each.stats["num_steps"] for each in (solution, same))
        assert torch.equal(*steps)

    def test_another_name_is_an_error(self):
        problem = tanh_cell(1, 5)
        for solver in ("deer", "sequential"):
            with pytest.raises(ValueError, match="`guess`.*'coarse'"):
                solve(problem, solver=solver, guess="coarse")
