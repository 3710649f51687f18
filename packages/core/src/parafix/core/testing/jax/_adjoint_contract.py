from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from parafix.core.jax import fixed_point, Solution

from ._compare import assert_close, assert_identical
from ._dense_oracle import dense_pullback, dense_pushforward, dense_solution
from ._oracle import directional_derivative
from ._zoo import DenseProblem, stacked, zoo


_SIZE = 6
# Of the derivatives, where the answer itself is right to 1e-12.
_EXACT = 1e-8


class AdjointContract:
    """What an adjoint for dense problems must do, as tests for pytest.

    Everything is asked through `fixed_point` and judged by dense linear algebra in
    NumPy: `(I - J)^-1` is solved with, and never iterated.

    !!! example

        ```python
        from parafix.core.testing.jax import AdjointContract

        class TestMyAdjoint(AdjointContract):
            exact = False

            def make(self):
                return MyAdjoint()
        ```

    **Attributes:**

    - `exact`: whether the derivatives are those of the implicit function theorem; if
        not, they must be right to within a quarter where `|J|` is a tenth.
    - `guess_is_constant`: whether the gradient with respect to the guess is zero.
    - `expansive`: whether it serves a map of spectral radius 3.
    - `solver`: the rootfinder of the forward solves, a name or an object.
    """

    exact: ClassVar[bool] = True
    guess_is_constant: ClassVar[bool] = True
    expansive: ClassVar[bool] = True
    solver: ClassVar[Any] = "newton"

    def make(self) -> optx.AbstractAdjoint:
        """The adjoint under test."""
        raise NotImplementedError

    def solve(self, fn: Callable, y0: Any, args: Any) -> Solution:
        """`fixed_point` with the adjoint under test; nothing is thrown."""
        # An object has tolerances of its own.
        tolerance = 1e-12 if isinstance(self.solver, str) else None
        return fixed_point(
            fn,
            y0,
            args,
            solver=self.solver,
            adjoint=self.make(),
            rtol=tolerance,
            atol=tolerance,
            throw=False,
        )

    def loss(self, fn: Callable, y0: Any, args: Any) -> Any:
        """A sum of the answer's entries with weights, passed through a sine."""
        return _weights() @ jnp.sin(self.solve(fn, y0, args).value)

    def assert_right(self, actual: Any, expected: Any, problem: DenseProblem) -> None:
        """`actual` is `expected`, or near it if the adjoint is an approximation."""
        if self.exact:
            assert_close(actual, jax.tree.map(jnp.asarray, expected), _EXACT)
            return
        assert problem.name == "easy"
        for x, y in zip(
            jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
        ):
            assert np.linalg.norm(x - y) <= 0.25 * np.linalg.norm(y)

    def problems(self) -> list[DenseProblem]:
        """Those on which derivatives are compared."""
        names = ["easy"]
        if self.exact:
            names += ["symmetric", "tanh"]
        if self.exact and self.expansive:
            names += ["radius-3"]
        return [zoo(name, 0, _SIZE) for name in names]

    def test_gradient_and_tangent(self):
        @eqx.filter_jit
        def both(fn, y0, args, tangents):
            loss = lambda args: self.loss(fn, y0, args)
            value = lambda args: self.solve(fn, y0, args).value
            return jax.grad(loss)(args), jax.jvp(value, (args,), (tangents,))[1]

        for problem in self.problems():
            tangents = _direction(problem.args)
            gradient, tangent = both(problem.fn, problem.y0, problem.args, tangents)
            expected = _oracle_gradient(problem.fn, problem.args)
            self.assert_right(gradient, expected, problem)
            expected = dense_pushforward(problem.fn, problem.args, tangents)
            self.assert_right(tangent, expected, problem)
            # An approximation is one and the same in both modes.
            cotangent = _weights() * jnp.cos(problem.solution)
            np.testing.assert_allclose(
                sum(np.vdot(gradient[x], tangents[x]) for x in gradient),
                cotangent @ tangent,
                rtol=_EXACT,
                atol=_EXACT,
            )

    def test_second_derivatives(self):
        problem = self.problems()[-1]
        if self.exact:
            problem = zoo("tanh", 0, _SIZE)

        @jax.jit
        def products(args, tangents):
            loss = lambda args: self.loss(problem.fn, problem.y0, args)
            gradient = jax.grad(loss)

            def along(args):
                return jnp.vdot(gradient(args)["offset"], tangents["offset"])

            offset = lambda b: loss({**args, "offset": b})
            return (
                jax.jvp(gradient, (args,), (tangents,))[1],
                jax.grad(along)(args),
                jax.hessian(offset)(args["offset"]),
            )

        tangents = _direction(problem.args)
        forward, backward, hessian = products(problem.args, tangents)
        for x in jax.tree.leaves((forward, backward, hessian)):
            assert np.isfinite(x).all()
        if not self.exact:
            return
        # The oracle's gradient is NumPy's, and its derivative by differences.
        args = jax.tree.map(np.asarray, problem.args)
        gradient = lambda args: _oracle_gradient(problem.fn, args)
        expected = directional_derivative(gradient, args, tangents)
        self.assert_right(forward, expected, problem)
        only = {"matrix": 0 * args["matrix"], "offset": tangents["offset"]}
        expected = directional_derivative(gradient, args, only)
        self.assert_right(backward, expected, problem)
        assert_close(hessian, hessian.T, _EXACT)
        assert_close(
            hessian @ tangents["offset"], jnp.asarray(expected["offset"]), _EXACT
        )

    def test_of_a_batch(self):
        name = "symmetric" if self.exact else "easy"
        problems = [zoo(name, seed, _SIZE) for seed in range(4)]
        batch = stacked(problems)

        @jax.jit
        def gradients(y0, args):
            gradient = jax.grad(lambda args, y0: self.loss(batch.fn, y0, args))
            return jax.vmap(gradient)(args, y0)

        clean = gradients(batch.y0, batch.args)
        for i, problem in enumerate(problems):
            gradient = jax.tree.map(lambda x, i=i: x[i], clean)
            expected = _oracle_gradient(problem.fn, problem.args)
            self.assert_right(gradient, expected, zoo(name, i, _SIZE))
        # One forward solve fails: the other gradients are the same, bit for bit.
        offset = batch.args["offset"].at[1, 2].set(jnp.nan)
        poisoned = gradients(batch.y0, {**batch.args, "offset": offset})
        others = lambda tree: jax.tree.map(lambda x: jnp.delete(x, 1, 0), tree)
        assert_identical(others(poisoned), others(clean))

    def test_of_the_guess(self):
        if not self.guess_is_constant:
            return
        problem = zoo("tanh" if self.exact else "easy", 0, _SIZE)

        @jax.jit
        def both(y0):
            loss = lambda y0: self.loss(problem.fn, y0, problem.args)
            return jax.grad(loss)(y0), jax.jvp(loss, (y0,), (y0 + 1,))[1]

        for derivative in both(problem.y0 + 0.1):
            assert not np.any(derivative), derivative


def _weights():
    return jnp.cos(jnp.arange(_SIZE, dtype=float))


def _direction(args):
    random = np.random.default_rng(7)
    # Of such a length that six steps of differences stay where the answer is smooth.
    return jax.tree.map(lambda x: jnp.asarray(0.1 * random.normal(size=x.shape)), args)


def _oracle_gradient(fn, args) -> dict[str, Any]:
    cotangent = np.asarray(_weights()) * np.cos(dense_solution(fn, args))
    return dense_pullback(fn, args, cotangent)
