from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import func

from parafix.core.torch import AbstractAdjoint, fixed_point, Solution

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
        from parafix.core.testing.torch import AdjointContract

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

    def make(self) -> AbstractAdjoint:
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
        """A sum of the answers' entries with weights, passed through a sine."""
        value = self.solve(fn, y0, args).value
        return (torch.as_tensor(_weights()) * value.sin()).sum()

    def assert_right(self, actual: Any, expected: Any, problem: DenseProblem) -> None:
        """`actual` is `expected`, or near it if the adjoint is an approximation."""
        if self.exact:
            assert_close(actual, expected, _EXACT)
            return
        assert problem.name == "easy"
        for x, y in zip(
            pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True
        ):
            x = x.detach().numpy()
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
        for problem in self.problems():
            loss, value = self._of_args(problem)
            tangents = _direction(problem.args)
            gradient = func.grad(loss)(problem.args)
            tangent = func.jvp(value, (problem.args,), (tangents,))[1]
            expected = _oracle_gradient(problem.fn, problem.args)
            self.assert_right(gradient, expected, problem)
            leaves = _leaves(problem.args)
            backward = torch.autograd.grad(loss(leaves), list(leaves.values()))
            self.assert_right(
                dict(zip(leaves, backward, strict=True)), expected, problem
            )
            expected = dense_pushforward(problem.fn, problem.args, tangents)
            self.assert_right(tangent, expected, problem)
            # An approximation is one and the same in both modes.
            cotangent = _weights() * np.cos(problem.solution)
            np.testing.assert_allclose(
                sum(float((gradient[x] * tangents[x]).sum()) for x in gradient),
                np.vdot(cotangent, tangent.numpy()),
                rtol=_EXACT,
                atol=_EXACT,
            )

    def test_second_derivatives(self):
        problem = self.problems()[-1]
        if self.exact:
            problem = zoo("tanh", 0, _SIZE)
        args, tangents = problem.args, _direction(problem.args)
        loss, _ = self._of_args(problem)
        gradient = func.grad(loss)

        def along(args):
            return (gradient(args)["offset"] * tangents["offset"]).sum()

        forward = func.jvp(gradient, (args,), (tangents,))[1]
        backward = func.grad(along)(args)
        leaves = _leaves(args)
        first = torch.autograd.grad(loss(leaves), leaves["offset"], create_graph=True)[
            0
        ]
        found = torch.autograd.grad(
            (first * tangents["offset"]).sum(), list(leaves.values())
        )
        twice = dict(zip(leaves, found, strict=True))
        offset = lambda b: loss({**args, "offset": b})
        hessian = func.hessian(offset)(args["offset"]).reshape(_SIZE, _SIZE)
        for x in pytree.tree_leaves((forward, backward, twice, hessian)):
            assert x.isfinite().all()
        if not self.exact:
            return
        # The oracle's gradient is NumPy's, and its derivative by differences.
        numbers, direction = (_as_numpy(x) for x in (args, tangents))
        oracle = lambda args: _oracle_gradient(problem.fn, args)
        expected = directional_derivative(oracle, numbers, direction)
        self.assert_right(forward, expected, problem)
        only = {"matrix": 0 * numbers["matrix"], "offset": direction["offset"]}
        expected = directional_derivative(oracle, numbers, only)
        self.assert_right(backward, expected, problem)
        self.assert_right(twice, expected, problem)
        assert_close(hessian, hessian.T, _EXACT)
        product = hessian @ tangents["offset"][0]
        assert_close(product, expected["offset"][0], _EXACT)

    def test_of_a_batch(self):
        name = "symmetric" if self.exact else "easy"
        problems = [zoo(name, seed, _SIZE) for seed in range(4)]
        batch = stacked(problems)

        def gradients(args):
            loss = lambda args: self.loss(batch.fn, batch.y0, args)
            leaves = _leaves(args)
            backward = torch.autograd.grad(loss(leaves), list(leaves.values()))
            members = pytree.tree_map(lambda x: x[:, None], args)
            one = lambda args: self.loss(batch.fn, batch.y0[:1], args)
            return (
                dict(zip(leaves, backward, strict=True)),
                func.grad(loss)(args),
                pytree.tree_map(lambda x: x[:, 0], func.vmap(func.grad(one))(members)),
            )

        clean = gradients(batch.args)
        for found in clean:
            for i, problem in enumerate(problems):
                gradient = {name: x[i : i + 1] for name, x in found.items()}
                expected = _oracle_gradient(problem.fn, problem.args)
                self.assert_right(gradient, expected, zoo(name, i, _SIZE))
        # One forward solve fails: the other gradients are the same, bit for bit.
        offset = batch.args["offset"].clone()
        offset[1, 2] = torch.nan
        poisoned = gradients({**batch.args, "offset": offset})
        others = lambda tree: pytree.tree_map(lambda x: x[[0, 2, 3]], tree)
        assert_identical(others(poisoned), others(clean))

    def test_of_the_guess(self):
        if not self.guess_is_constant:
            return
        problem = zoo("tanh" if self.exact else "easy", 0, _SIZE)
        loss = lambda y0: self.loss(problem.fn, y0, problem.args)
        y0 = problem.y0 + 0.1
        tangent = func.jvp(loss, (y0,), (y0 + 1,))[1]
        for derivative in (func.grad(loss)(y0), tangent):
            assert not derivative.any(), derivative

    def _of_args(self, problem):
        return (
            lambda args: self.loss(problem.fn, problem.y0, args),
            lambda args: self.solve(problem.fn, problem.y0, args).value,
        )


def _weights():
    return np.cos(np.arange(_SIZE))


def _direction(args):
    random = np.random.default_rng(7)
    # Of such a length that six steps of differences stay where the answer is smooth.
    return {
        name: torch.as_tensor(0.1 * random.normal(size=x.shape))
        for name, x in args.items()
    }


def _leaves(args):
    return {name: x.clone().requires_grad_() for name, x in args.items()}


def _as_numpy(args):
    return {name: x.numpy() for name, x in args.items()}


def _oracle_gradient(fn, args) -> dict[str, Any]:
    cotangent = _weights() * np.cos(dense_solution(fn, args))
    return dense_pullback(fn, args, cotangent)
