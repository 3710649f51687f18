from typing import Any, ClassVar

import numpy as np
import torch
import torch.utils._pytree as pytree

from parafix.core.torch import AbstractCausalSweep, RESULTS, Solution, solve_causal

from ._causal_zoo import causal_zoo, causal_zoo_names, CausalProblem, one_by_one
from ._compare import assert_close, assert_identical
from ._oracle import directional_derivative


_COUNT = 13
_SAMPLES = 4
_TOLERANCE = 1e-9


class CausalContract:
    """What a sweep for causal problems must do, as tests for pytest.

    Everything is asked through `solve_causal` and judged by the sequential program: the
    same function at the same shapes, of which one entry is accepted in every pass.

    !!! example

        ```python
        from parafix.core.testing.torch import CausalContract

        class TestMySweep(CausalContract):
            def make(self, rtol, atol):
                return MySweep(rtol, atol)
        ```

    **Attributes:**

    - `takes_depth`: whether it takes as many sweeps as the longest path of dependences
        has entries, and one that confirms.
    """

    takes_depth: ClassVar[bool] = False

    def make(self, rtol: float, atol: float) -> AbstractCausalSweep:
        """The sweep under test."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Runs a test that takes a `problem` for all problems of the zoo."""
        if "problem" in metafunc.fixturenames:
            metafunc.parametrize("problem", causal_zoo_names())

    def solve(
        self,
        problem: CausalProblem,
        args: Any,
        z0: Any,
        mode: str = "exact",
        max_steps: int | None = None,
    ) -> Solution:
        """`solve_causal` of four samples; nothing is thrown, and nothing checked."""
        return solve_causal(
            lambda z: problem.fn(z, args),
            z0,
            solver=self.make(_TOLERANCE, _TOLERANCE),
            mode=mode,
            max_steps=max_steps,
            throw=False,
            check=False,
        )

    def test_bits_are_those_of_the_sequential_program(self, problem):
        import pytest

        single = problem == "network"
        for dtype in (torch.float64, torch.float32) if single else (torch.float64,):
            problem_ = causal_zoo(problem, 0, _COUNT, dtype)
            args, starts = _repeated(problem_.args), _starts(problem_)
            floats = self.make(0.0, 0.0).for_floats_only
            if floats and problem == "tokens":
                with pytest.raises(TypeError, match="floats"):
                    self.solve(problem_, args, starts)
                continue
            solution = self.solve(problem_, args, starts)
            stats = solution.stats
            assert (solution.result == RESULTS.successful).all()
            assert (stats["exact_prefix"] == _COUNT).all()
            assert (stats["num_steps"] <= _COUNT + 1).all()
            assert_identical(stats["num_evals"], stats["num_steps"])
            assert_identical(solution.value, _loop(problem_.fn, args, starts))
            tolerance = 1e-5 if dtype == torch.float32 or problem == "tree" else 1e-12
            assert_close(solution.value, _repeated(problem_.solution), tolerance)
            if self.takes_depth and problem_.depth is not None:
                assert (stats["num_steps"] == problem_.depth + 1).all()

    def test_what_a_sample_holds_is_its_own_business(self):
        problem = causal_zoo("network", 0, _COUNT)
        starts = _starts(problem)
        args, other = _repeated(problem.args), causal_zoo("network", 1, _COUNT).args
        # Easy, less easy, with a NaN on the way, hard.
        args["weights"][0] = 0
        args["weights"][1] *= 0.01
        args["weights"][3] = other["weights"][0]
        args["noise"][2, 7, 1] = torch.nan
        solution = self.solve(problem, args, starts)
        assert_identical(solution.value, _loop(problem.fn, args, starts))
        steps = solution.stats["num_steps"]
        assert steps[0] <= steps[1]
        assert (steps <= _COUNT + 1).all()
        good = RESULTS.successful
        assert solution.result.tolist() == [good, good, RESULTS.nonfinite, good]
        first = torch.isfinite(solution.value[2]).all(1)
        assert first.tolist() == [True] * 7 + [False] * (_COUNT - 7)
        # The others become easy.
        easy = {name: x.clone() for name, x in args.items()}
        easy["weights"][[0, 2, 3]] = 0
        easy["noise"][[0, 2, 3]] = other["noise"]
        changed = self.solve(problem, easy, starts)
        second = lambda solution: (solution.value[1], solution.stats["num_steps"][1])
        assert_identical(second(changed), second(solution))

    def test_a_cap_leaves_a_prefix(self):
        problem = causal_zoo("network", 0, _COUNT)
        args, starts = _repeated(problem.args), _starts(problem)
        expected = _loop(problem.fn, args, starts)
        solution = self.solve(problem, args, starts, max_steps=3)
        for i in range(_SAMPLES):
            prefix = int(solution.stats["exact_prefix"][i])
            assert 3 <= prefix < _COUNT
            assert_identical(solution.value[i, :prefix], expected[i, :prefix])
        assert (solution.result == RESULTS.max_steps_reached).all()
        assert (solution.stats["num_steps"] == 3).all()

    def test_a_tolerance_is_kept(self):
        problem = causal_zoo("chain", 0, _COUNT)
        args, starts = _repeated(problem.args), _starts(problem)
        solution = self.solve(problem, args, starts, "tolerance")
        assert (solution.result == RESULTS.successful).all()
        assert (solution.stats["residual"] <= 1).all()
        assert (solution.stats["converged_prefix"] == _COUNT).all()
        # In chains of four, each link at most 1.5 times as far off as the one before.
        assert_close(solution.value, _repeated(problem.solution), 100 * _TOLERANCE)

    def test_gradients_are_those_of_the_sequential_program(self):
        problem = causal_zoo("network", 0, _COUNT)
        starts, weights = _starts(problem), torch.as_tensor(_weights())
        random = np.random.default_rng(1)
        point = {name: x.numpy() for name, x in problem.args.items()}
        direction = pytree.tree_map(lambda x: random.normal(size=x.shape), point)
        expected = directional_derivative(
            lambda args: np.sum(_weights() * problem.loop(args)), point, direction, 1e-3
        )

        def loss(args):
            solution = solve_causal(
                lambda z: problem.fn(z, args),
                starts,
                solver=self.make(_TOLERANCE, _TOLERANCE),
                check=False,
            )
            return (weights * solution.value).sum((1, 2))

        leaves = pytree.tree_map(lambda x: x.requires_grad_(), _repeated(problem.args))
        plain = torch.autograd.grad(loss(leaves).sum(), tuple(leaves.values()))
        args = _repeated(problem.args)
        transformed = torch.func.grad(lambda args: loss(args).sum())(args)
        for found in (dict(zip(args, plain, strict=True)), transformed):
            for i in range(_SAMPLES):
                actual = sum(
                    np.vdot(found[name][i].numpy(), direction[name][0])
                    for name in point
                )
                np.testing.assert_allclose(actual, expected, 1e-7, 1e-7)
        pairs = pytree.tree_map(lambda x: torch.stack([x, 0.5 * x]), args)
        mapped = torch.func.vmap(torch.func.grad(lambda args: loss(args).sum()))(pairs)
        for name, x in mapped.items():
            assert_close(x[0], transformed[name], 1e-10)


def _loop(fn, args, z0):
    return one_by_one(lambda z: fn(z, args), z0)


def _weights():
    return np.cos(np.arange(2 * _COUNT)).reshape(_COUNT, 2)


def _repeated(tree):
    return pytree.tree_map(lambda x: torch.cat([x] * _SAMPLES), tree)


def _starts(problem):
    """Guesses: of several sizes, for floats."""
    random = np.random.default_rng(3)

    def several(x):
        shape = (_SAMPLES, *x.shape[1:])
        if not x.is_floating_point():
            return torch.as_tensor(random.integers(0, 3, shape)).to(x.dtype)
        sizes = np.array([0.0, 0.3, 1.0, problem.reach])
        sizes = sizes.reshape(-1, *[1] * (x.ndim - 1))
        # Not from a normal distribution, whose tails have no end.
        return torch.as_tensor(sizes * random.uniform(-1, 1, shape)).to(x.dtype)

    return pytree.tree_map(several, problem.z0)
