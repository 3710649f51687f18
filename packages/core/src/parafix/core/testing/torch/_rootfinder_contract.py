import dataclasses
from typing import Any, ClassVar

import numpy as np
import torch
import torch.utils._pytree as pytree

from parafix.core.torch import (
    AbstractIteration,
    fixed_point,
    RESULTS,
    root_find,
    Solution,
)

from ._compare import assert_close, assert_identical, CallCounter
from ._dense_oracle import affine, dense_solution, tanh_layer
from ._oracle import directional_derivative
from ._zoo import DenseProblem, stacked, zoo, zoo_names


_SIZE = 8
_TOLERANCE = 1e-9
# What a residual within tolerance may mean for the answer, as `(I - J)^-1` is large.
_ANSWER = 1e-6
_FAILURES = (
    RESULTS.max_steps_reached,
    RESULTS.nonfinite,
    RESULTS.diverged,
    RESULTS.stalled,
    RESULTS.linear_solve_failed,
)


class RootFinderContract:
    """What a rootfinder for dense problems must do, as tests for pytest.

    Everything is asked through the public verbs and judged by NumPy.

    !!! example

        ```python
        from parafix.core.testing.torch import RootFinderContract

        class TestMySolver(RootFinderContract):
            solves = ("easy", "symmetric", "tanh")

            def make(self, rtol, atol):
                return MySolver(rtol, atol)
        ```

    **Attributes:**

    - `solves`: the names of problems in [`parafix.core.testing.torch.zoo`][], of 8
        entries each, that are solved to 1e-9 in `max_steps`. Must contain `"tanh"`.
    - `max_steps`: how many steps it may take for them; the verb's default if `None`.
    - `single_precision`: whether it takes float32.
    - `ignores_units`: whether as many evaluations are used for `z -> s f(z / s)`,
        whatever `s`.
    - `counts_exactly`: whether `stats["num_evals"]` is the number of calls of `f` that
        are made, but for those inside of Jacobian-vector products.
    """

    solves: ClassVar[tuple[str, ...]] = zoo_names("contractive", "expansive")
    max_steps: ClassVar[int | None] = None
    single_precision: ClassVar[bool] = True
    ignores_units: ClassVar[bool] = True
    counts_exactly: ClassVar[bool] = True

    def make(self, rtol: float, atol: float) -> AbstractIteration:
        """The solver under test."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Runs a test that takes a `problem` for every problem that is solved."""
        if "problem" in metafunc.fixturenames:
            metafunc.parametrize("problem", metafunc.cls.solves)

    def solve(
        self,
        problem: DenseProblem,
        rtol: float = _TOLERANCE,
        atol: float | None = None,
        max_steps: int | None = None,
    ) -> Solution:
        """`fixed_point` by the solver under test; `atol` is `rtol` unless given.

        Nothing is thrown.
        """
        return fixed_point(
            problem.fn,
            problem.y0,
            problem.args,
            solver=self.make(rtol, rtol if atol is None else atol),
            max_steps=self.max_steps if max_steps is None else max_steps,
            throw=False,
        )

    def test_success_is_an_answer(self, problem):
        tolerance = 1e-5 if problem == "mixed-tree" else _TOLERANCE
        problem = zoo(problem, 0, _SIZE)
        solution = self.solve(problem, tolerance)
        _assert_solved(problem, solution, tolerance)

    def test_roots_are_found(self):
        problem = zoo("tanh", 0, _SIZE)
        root = problem.as_root()
        solution = root_find(
            root.fn,
            root.y0,
            root.args,
            solver=self.make(_TOLERANCE, _TOLERANCE),
            max_steps=self.max_steps,
            throw=False,
        )
        _assert_solved(problem, solution, _TOLERANCE)

    def test_float32(self):
        import pytest

        if not self.single_precision:
            pytest.skip("this solver does not claim it")
        problem = zoo("tanh", 0, _SIZE, torch.float32)
        solution = self.solve(problem, 1e-5)
        assert solution.value.dtype == torch.float32
        _assert_solved(problem, solution, 1e-5)

    def test_hopeless_is_never_success(self):
        for name in zoo_names("hopeless"):
            problem = zoo(name, 0, _SIZE)
            solution = self.solve(problem)
            assert solution.result != RESULTS.successful, name
            # The best iterate: no worse than the guess.
            before = problem.residual(problem.y0, _TOLERANCE, _TOLERANCE)
            after = problem.residual(solution.value, _TOLERANCE, _TOLERANCE)
            assert after <= before * (1 + 1e-9), (name, before, after)
            assert solution.value.isfinite().all(), name

    def test_a_guess_of_nan_is_never_success(self):
        problem = zoo("tanh", 0, _SIZE)
        poisoned = _with_offset(problem.args, 0, torch.nan)
        for y0, args in (
            (_with_entry(problem.y0, 0, torch.nan), problem.args),
            (problem.y0, poisoned),
        ):
            problem = dataclasses.replace(problem, y0=y0, args=args)
            assert self.solve(problem).result != RESULTS.successful

    def test_one_step_is_not_enough(self):
        problem = zoo("tanh", 0, _SIZE)
        solution = self.solve(problem, max_steps=1)
        assert solution.result == RESULTS.max_steps_reached, solution.result
        assert solution.stats["num_steps"] == 1
        before, after = (
            problem.residual(y, _TOLERANCE, _TOLERANCE)
            for y in (problem.y0, solution.value)
        )
        assert 1 < after <= before
        np.testing.assert_allclose(solution.stats["residual"], [after], rtol=1e-6)

    def test_a_failure_is_thrown(self):
        import pytest

        problem = zoo("tanh", 0, _SIZE)

        def value(args):
            solver = self.make(_TOLERANCE, _TOLERANCE)
            return fixed_point(
                problem.fn, problem.y0, args, solver=solver, max_steps=self.max_steps
            ).value

        assert_close(value(problem.args), problem.solution, _ANSWER)
        for wanted in (False, True):
            args = _with_offset(problem.args, 0, torch.nan)
            args["offset"].requires_grad_(wanted)
            with pytest.raises(RuntimeError) as caught:
                value(args)
            assert any(RESULTS[member] in str(caught.value) for member in _FAILURES)

    def test_a_failure_is_thrown_when_only_a_gradient_is_asked_for(self):
        import pytest

        problem = zoo("tanh", 0, _SIZE)
        poisoned = _with_offset(problem.args, 0, torch.nan)
        # The second fails although the linear solve behind the gradient does not.
        for args, max_steps in ((poisoned, None), (problem.args, 1)):
            with pytest.raises(RuntimeError) as caught:
                self.gradient(problem, args, max_steps)
            assert any(RESULTS[member] in str(caught.value) for member in _FAILURES)

    def test_the_gradient_agrees_with_differences(self):
        problem = zoo("tanh", 0, _SIZE)
        gradient = self.gradient(problem, problem.args)
        random = np.random.default_rng(1)
        args = {name: x.numpy() for name, x in problem.args.items()}
        direction = pytree.tree_map(lambda x: 0.1 * random.normal(size=x.shape), args)
        expected = directional_derivative(
            lambda args: np.sum(_weights() * dense_solution(tanh_layer, args)),
            args,
            direction,
        )
        actual = sum(np.vdot(gradient[x].numpy(), direction[x]) for x in args)
        np.testing.assert_allclose(actual, expected, rtol=_ANSWER, atol=_ANSWER)

    def gradient(
        self, problem: DenseProblem, args: Any, max_steps: int | None = None
    ) -> Any:
        """Of a sum of the answer's entries with weights, with respect to `args`."""

        # Linear in the result: the gradient does not need the value.
        def loss(args):
            solution = fixed_point(
                problem.fn,
                problem.y0,
                args,
                solver=self.make(_TOLERANCE, _TOLERANCE),
                max_steps=self.max_steps if max_steps is None else max_steps,
            )
            return (torch.as_tensor(_weights()) * solution.value).sum()

        return torch.func.grad(loss)(args)

    def test_neighbours_do_not_matter(self):
        # Of one function, from easy to hard; what the last holds changes.
        problems = [zoo(name, 0, _SIZE) for name in self.solves]
        problems = [problem for problem in problems if problem.fn is affine]
        problems = problems or [zoo("tanh", 0, _SIZE)]
        problems.append(problems[0])
        batch = stacked(problems)
        clean = self.solve(batch)
        for poison in (torch.nan, torch.inf, 1e3):
            args = _with_offset(batch.args, -1, poison)
            poisoned = self.solve(dataclasses.replace(batch, args=args))
            assert_identical(_samples(poisoned, slice(-1)), _samples(clean, slice(-1)))
            if not np.isfinite(poison):
                assert poisoned.result[-1] != RESULTS.successful
        for i, problem in enumerate(problems[:-1]):
            alone = self.solve(problem)
            value, result, stats = _samples(clean, slice(i, i + 1))
            # What works on a batch may round otherwise than it does on one sample.
            steps = [int(x["num_steps"]) for x in (alone.stats, stats)]
            assert abs(steps[0] - steps[1]) <= 1 + 0.1 * steps[0], problem.name
            assert alone.result == result, problem.name
            assert_close(value, alone.value, _ANSWER)

    def test_units_do_not_matter(self):
        import pytest

        if not self.ignores_units:
            pytest.skip("this solver does not claim it")
        problem = zoo("tanh", 0, _SIZE)
        counts = {}
        for scale in (1.0, 1e-9, 1e-3, 1e3):
            # So small an `atol` means nothing in any of the units.
            solution = self.solve(problem.scaled(scale), 1e-8, 1e-30)
            assert solution.result == RESULTS.successful, scale
            value = solution.value.numpy() / scale
            np.testing.assert_allclose(value, problem.solution, rtol=0, atol=_ANSWER)
            counts[scale] = int(solution.stats["num_evals"])
        assert max(counts.values()) - min(counts.values()) <= 1, counts

    def test_stats(self):
        problem = zoo("tanh", 0, _SIZE)
        for wanted in (False, True):
            fn = CallCounter(tanh_layer)
            args = {**problem.args, "offset": problem.args["offset"].clone()}
            args["offset"].requires_grad_(wanted)
            solution = self.solve(dataclasses.replace(problem, fn=fn, args=args))
            stats = solution.stats
            assert {"num_steps", "num_evals", "num_linear", "residual"} <= set(stats)
            for name, x in stats.items():
                assert x.shape == (1,), name
                if name.startswith("num_"):
                    assert x.dtype == torch.int64, name
            numbers = {name: float(x) for name, x in stats.items()}
            most = numbers["num_evals"] + numbers["num_linear"]
            assert 1 <= numbers["num_steps"] <= most
            assert 0 <= numbers["residual"] <= 1
            if self.counts_exactly:
                # A product with the Jacobian may, but need not, evaluate `f` once more.
                assert numbers["num_evals"] <= fn.calls <= most, (fn.calls, numbers)


def _weights():
    return np.cos(np.arange(_SIZE))


def _with_entry(x, sample, value):
    x = x.clone()
    x[sample, 3] = value
    return x


def _with_offset(args, sample, value):
    return {**args, "offset": _with_entry(args["offset"], sample, value)}


def _samples(solution, index):
    """Some samples of everything that is in a solution."""
    stats = {name: x[index] for name, x in solution.stats.items()}
    return solution.value[index], solution.result[index], stats


def _assert_solved(problem, solution, tolerance):
    assert solution.result == RESULTS.successful, (problem.name, solution.result)
    # A leaf's own rounding is not the solver's business.
    measured = problem.residual(solution.value, tolerance, tolerance)
    assert measured <= 1.001, (problem.name, measured)
    assert_close(
        solution.value, problem.solution, _ANSWER if tolerance < 1e-7 else 1e-3
    )
    assert solution.stats["residual"] <= 1
