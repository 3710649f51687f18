import functools as ft
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from parafix.core.jax import AbstractCausalSweep, RESULTS, Solution, solve_causal

from ._causal_zoo import causal_zoo, causal_zoo_names, CausalProblem, one_by_one
from ._compare import assert_close, assert_identical
from ._oracle import directional_derivative


_COUNT = 13
# All batches have as many samples, so that programs are compiled once.
_SAMPLES = 4
_TOLERANCE = 1e-9


class CausalContract:
    """What a sweep for causal problems must do, as tests for pytest.

    Everything is asked through `solve_causal` and judged by the sequential program: the
    same function at the same shapes, of which one entry is accepted in every pass.

    !!! example

        ```python
        from parafix.core.testing.jax import CausalContract

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
        """`solve_causal` under `jax.vmap`, of four samples; nothing is thrown."""
        solver = self.make(_TOLERANCE, _TOLERANCE)
        return _solve(problem.fn, solver, args, z0, mode, max_steps)

    def test_bits_are_those_of_the_sequential_program(self, problem):
        import pytest

        dtypes = (np.float64, np.float32) if problem == "network" else (np.float64,)
        for dtype in dtypes:
            problem_ = causal_zoo(problem, 0, _COUNT, dtype)
            args, starts = _repeated(problem_.args), _starts(problem_)
            floats = self.make(0.0, 0.0).for_floats_only
            if floats and problem == "tokens":
                with pytest.raises(TypeError, match="floats"):
                    self.solve(problem_, args, starts)
                continue
            solution = self.solve(problem_, args, starts)
            stats = solution.stats
            assert (solution.result._value == RESULTS.successful._value).all()
            assert (stats["exact_prefix"] == _COUNT).all()
            assert (stats["num_steps"] <= _COUNT + 1).all()
            assert_identical(stats["num_evals"], stats["num_steps"])
            assert_identical(solution.value, _loop(problem_.fn, args, starts))
            for i in range(_SAMPLES):
                value = jax.tree.map(lambda x, i=i: x[i], solution.value)
                tolerance = 1e-5 if dtype == np.float32 or problem == "tree" else 1e-12
                assert_close(value, problem_.solution, tolerance)
            if self.takes_depth and problem_.depth is not None:
                assert (stats["num_steps"] == problem_.depth + 1).all()

    def test_what_a_sample_holds_is_its_own_business(self):
        problem = causal_zoo("network", 0, _COUNT)
        starts = _starts(problem)
        args, other = _repeated(problem.args), causal_zoo("network", 1, _COUNT).args
        weights, noise = args["weights"], args["noise"]
        args = {
            # Easy, less easy, with a NaN on the way, hard.
            "weights": weights.at[0].set(0).at[1].mul(0.01).at[3].set(other["weights"]),
            "noise": noise.at[2, 7, 1].set(jnp.nan),
        }
        solution = self.solve(problem, args, starts)
        assert_identical(solution.value, _loop(problem.fn, args, starts))
        steps = solution.stats["num_steps"]
        assert steps[0] <= steps[1]
        assert (steps <= _COUNT + 1).all()
        assert solution.result._value.tolist() == [
            int(result._value)
            for result in (
                RESULTS.successful,
                RESULTS.successful,
                RESULTS.nonfinite,
                RESULTS.successful,
            )
        ]
        first = jnp.isfinite(solution.value[2]).all(1)
        assert first.tolist() == [True] * 7 + [False] * (_COUNT - 7)
        # The others become easy.
        others = np.array([0, 2, 3])
        easy = {
            "weights": args["weights"].at[others].set(0),
            "noise": noise.at[others].set(other["noise"]),
        }
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
        capped = solution.result._value == RESULTS.max_steps_reached._value
        assert capped.all()
        assert (solution.stats["num_steps"] == 3).all()

    def test_a_tolerance_is_kept(self):
        problem = causal_zoo("chain", 0, _COUNT)
        args, starts = _repeated(problem.args), _starts(problem)
        solution = self.solve(problem, args, starts, "tolerance")
        assert (solution.result._value == RESULTS.successful._value).all()
        assert (solution.stats["residual"] <= 1).all()
        assert (solution.stats["converged_prefix"] == _COUNT).all()
        # In chains of four, each link at most 1.5 times as far off as the one before.
        expected = jnp.stack([problem.solution] * _SAMPLES)
        assert_close(solution.value, expected, 100 * _TOLERANCE)

    def test_gradients_are_those_of_the_sequential_program(self):
        problem = causal_zoo("network", 0, _COUNT)
        solver = self.make(_TOLERANCE, _TOLERANCE)
        args = _repeated(problem.args)
        found = _gradient(problem.fn, solver, args, _starts(problem))
        random = np.random.default_rng(1)
        point = {name: np.asarray(x) for name, x in problem.args.items()}
        direction = jax.tree.map(lambda x: random.normal(size=x.shape), point)
        expected = directional_derivative(
            lambda args: np.sum(_weights() * problem.loop(args)), point, direction, 1e-3
        )
        for i in range(_SAMPLES):
            actual = sum(np.vdot(found[name][i], direction[name]) for name in point)
            np.testing.assert_allclose(actual, expected, 1e-7, 1e-7)


@eqx.filter_jit
def _solve(fn, solver, args, z0, mode, max_steps):
    def one(args, z0):
        return solve_causal(
            lambda z: fn(z, args),
            z0,
            solver=solver,
            mode=mode,
            max_steps=max_steps,
            throw=False,
        )

    return jax.vmap(one)(args, z0)


@ft.partial(jax.jit, static_argnums=0)
def _loop(fn, args, z0):
    return jax.vmap(lambda args, z: one_by_one(lambda z: fn(z, args), z))(args, z0)


@eqx.filter_jit
def _gradient(fn, solver, args, z0):
    def loss(args, z0):
        value = solve_causal(lambda z: fn(z, args), z0, solver=solver).value
        return (jnp.asarray(_weights()) * value).sum()

    return jax.vmap(jax.grad(loss))(args, z0)


def _weights():
    return np.cos(np.arange(2 * _COUNT)).reshape(_COUNT, 2)


def _repeated(tree):
    return jax.tree.map(lambda x: jnp.stack([x] * _SAMPLES), tree)


def _starts(problem):
    """Guesses: of several sizes, for floats."""
    random = np.random.default_rng(3)

    def several(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return jnp.asarray(random.integers(0, 3, (_SAMPLES, *x.shape)), x.dtype)
        sizes = np.array([0.0, 0.3, 1.0, problem.reach])
        sizes = sizes.reshape(-1, *[1] * x.ndim)
        # Not from a normal distribution, whose tails have no end.
        numbers = sizes * random.uniform(-1, 1, (_SAMPLES, *x.shape))
        return jnp.asarray(numbers, x.dtype)

    return jax.tree.map(several, problem.z0)
