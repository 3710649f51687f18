import dataclasses
import functools as ft
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from parafix.core.jax import fixed_point, RESULTS, root_find, Solution

from ._compare import assert_close, assert_identical, CallCounter
from ._dense_oracle import affine, dense_solution, tanh_layer
from ._oracle import directional_derivative
from ._zoo import DenseProblem, stacked, zoo, zoo_names


# Small, for most of the time is compilation.
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


@eqx.filter_jit
def _batch(fn, y0, args, solver, max_steps):
    def one(y0, args):
        return fixed_point(
            fn, y0, args, solver=solver, max_steps=max_steps, throw=False
        )

    return jax.vmap(one)(y0, args)


@eqx.filter_jit
def _gradient(fn, y0, args, solver, max_steps, weights):
    # Linear in the result: the gradient does not need the value.
    def loss(args):
        solution = fixed_point(fn, y0, args, solver=solver, max_steps=max_steps)
        return weights @ solution.value

    return jax.grad(loss)(args)


class RootFinderContract:
    """What a rootfinder for dense problems must do, as tests for pytest.

    Everything is asked through the public verbs and judged by NumPy.

    !!! example

        ```python
        from parafix.core.testing.jax import RootFinderContract

        class TestMySolver(RootFinderContract):
            solves = ("easy", "symmetric", "tanh")

            def make(self, rtol, atol):
                return MySolver(rtol, atol)
        ```

    **Attributes:**

    - `solves`: the names of problems in [`parafix.core.testing.jax.zoo`][], of 8
        entries each, that are solved to 1e-9 in `max_steps`. Must contain `"tanh"`.
    - `max_steps`: how many steps it may take for them; the verb's default if `None`.
    - `single_precision`: whether it takes float32 while JAX is set to float64.
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

    def make(self, rtol: float, atol: float) -> optx.AbstractFixedPointSolver | Any:
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
        problem = zoo("tanh", 0, _SIZE, jnp.float32)
        solution = self.solve(problem, 1e-5)
        assert solution.value.dtype == jnp.float32
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
            assert np.isfinite(solution.value).all(), name

    def test_a_guess_of_nan_is_never_success(self):
        problem = zoo("tanh", 0, _SIZE)
        poisoned = {**problem.args, "offset": problem.args["offset"].at[3].set(jnp.nan)}
        for y0, args in (
            (problem.y0.at[3].set(jnp.nan), problem.args),
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
        np.testing.assert_allclose(solution.stats["residual"], after, rtol=1e-6)

    def test_a_failure_is_thrown(self):
        import pytest

        problem = zoo("tanh", 0, _SIZE)
        poisoned = {**problem.args, "offset": problem.args["offset"].at[3].set(jnp.nan)}

        @jax.jit
        def value(args):
            solver = self.make(_TOLERANCE, _TOLERANCE)
            return fixed_point(
                problem.fn, problem.y0, args, solver=solver, max_steps=self.max_steps
            ).value

        assert_close(value(problem.args), jnp.asarray(problem.solution), _ANSWER)
        # Out of `jax.jit` it comes as what the runtime makes of it.
        with pytest.raises((RuntimeError, ValueError)) as caught:
            jax.block_until_ready(value(poisoned))
        assert any(RESULTS[member] in str(caught.value) for member in _FAILURES)

    def test_a_failure_is_thrown_when_only_a_gradient_is_asked_for(self):
        import pytest

        problem = zoo("tanh", 0, _SIZE)
        poisoned = {**problem.args, "offset": problem.args["offset"].at[3].set(jnp.nan)}
        # The second fails although the linear solve behind the gradient does not.
        for args, max_steps in ((poisoned, None), (problem.args, 1)):
            with pytest.raises(RuntimeError) as caught:
                jax.block_until_ready(self.gradient(problem, args, max_steps))
            assert any(RESULTS[member] in str(caught.value) for member in _FAILURES)

    def test_the_gradient_agrees_with_differences(self):
        problem = zoo("tanh", 0, _SIZE)
        gradient = self.gradient(problem, problem.args)
        random = np.random.default_rng(1)
        args = jax.tree.map(np.asarray, problem.args)
        direction = jax.tree.map(lambda x: 0.1 * random.normal(size=x.shape), args)
        expected = directional_derivative(
            lambda args: _weights() @ dense_solution(tanh_layer, args), args, direction
        )
        actual = sum(np.vdot(gradient[x], direction[x]) for x in args)
        np.testing.assert_allclose(actual, expected, rtol=_ANSWER, atol=_ANSWER)

    def gradient(
        self, problem: DenseProblem, args: Any, max_steps: int | None = None
    ) -> Any:
        """Of a sum of the answer's entries with weights, with respect to `args`."""
        solver = self.make(_TOLERANCE, _TOLERANCE)
        max_steps = self.max_steps if max_steps is None else max_steps
        return _gradient(problem.fn, problem.y0, args, solver, max_steps, _weights())

    def test_neighbours_do_not_matter(self):
        # Of one function, from easy to hard; what the last holds changes.
        problems = [zoo(name, 0, _SIZE) for name in self.solves]
        problems = [problem for problem in problems if problem.fn is affine]
        problems = problems or [zoo("tanh", 0, _SIZE)]
        problems.append(problems[0])
        batch = stacked(problems)
        solver = self.make(_TOLERANCE, _TOLERANCE)
        solve = ft.partial(
            _batch, batch.fn, batch.y0, solver=solver, max_steps=self.max_steps
        )
        clean = solve(batch.args)
        offset = batch.args["offset"]
        for poison in (jnp.nan, jnp.inf, 1e3):
            poisoned = solve({**batch.args, "offset": offset.at[-1, 3].set(poison)})
            head = lambda tree: jax.tree.map(lambda x: x[:-1], tree)
            assert_identical(head(_arrays(poisoned)), head(_arrays(clean)))
            if not np.isfinite(poison):
                last = jax.tree.map(lambda x: x[-1], poisoned.result)
                assert last != RESULTS.successful
        for i, problem in enumerate(problems[:-1]):
            alone = self.solve(problem)
            both = jax.tree.map(lambda x, i=i: x[i], clean)
            # Matrix products of a batch round otherwise than those of one sample.
            steps = [int(x.stats["num_steps"]) for x in (alone, both)]
            assert abs(steps[0] - steps[1]) <= 1 + 0.1 * steps[0], problem.name
            assert alone.result == both.result, problem.name
            assert_close(both.value, alone.value, _ANSWER)

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
            value = np.asarray(solution.value) / scale
            np.testing.assert_allclose(value, problem.solution, rtol=0, atol=_ANSWER)
            counts[scale] = int(solution.stats["num_evals"])
        assert max(counts.values()) - min(counts.values()) <= 1, counts

    def test_stats_and_recompilation(self):
        problem = zoo("tanh", 0, _SIZE)
        calls = []

        def counted(y, args):
            jax.debug.callback(lambda: calls.append(None))
            return tanh_layer(y, args)

        fn = CallCounter(counted)
        solver = self.make(_TOLERANCE, _TOLERANCE)
        solve = ft.partial(fixed_point, fn, solver=solver, max_steps=self.max_steps)
        solution = solve(problem.y0, problem.args)
        jax.block_until_ready(solution.value)
        jax.effects_barrier()
        called = len(calls)
        stats = {name: np.asarray(x) for name, x in solution.stats.items()}
        assert {"num_steps", "num_evals", "num_linear", "residual"} <= set(stats)
        for name, x in stats.items():
            assert x.shape == (), name
            if name.startswith("num_"):
                assert np.issubdtype(x.dtype, np.integer), name
        assert 1 <= stats["num_steps"] <= stats["num_evals"] + stats["num_linear"]
        assert 0 <= stats["residual"] <= 1
        if self.counts_exactly:
            # A product with the Jacobian may, but need not, evaluate `f` once more.
            most = stats["num_evals"] + stats["num_linear"]
            assert stats["num_evals"] <= called <= most, (called, stats)

        traces = fn.calls
        args = {**problem.args, "offset": 0.9 * problem.args["offset"]}
        expected = jnp.asarray(dense_solution(tanh_layer, args))
        assert_close(solve(problem.y0, args).value, expected, _ANSWER)
        assert fn.calls == traces, "other numbers compiled it again"


def _weights():
    return jnp.cos(jnp.arange(_SIZE, dtype=float))


def _arrays(solution):
    return solution.value, solution.result._value, solution.stats


def _assert_solved(problem, solution, tolerance):
    assert solution.result == RESULTS.successful, (problem.name, solution.result)
    expected = jax.tree.map(jnp.asarray, problem.solution)
    # A leaf's own rounding is not the solver's business.
    measured = problem.residual(solution.value, tolerance, tolerance)
    assert measured <= 1.001, (problem.name, measured)
    assert_close(solution.value, expected, _ANSWER if tolerance < 1e-7 else 1e-3)
    assert solution.stats["residual"] <= 1
