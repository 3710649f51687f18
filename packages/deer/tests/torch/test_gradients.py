"""Derivatives: those of the loop, in every mode and to every order."""

import functools as ft

import pytest
import torch
from torch.utils import _pytree as pytree

from parafix.core.testing.torch import (
    assert_close,
    directional_derivative,
    gru,
    largest_bytes,
    lstm,
    reference_scan,
    tanh_cell,
)
from parafix.deer.torch import DEER, scan


DOUBLE = torch.float64
CELLS = {"gru": gru, "lstm": lstm, "tanh": tanh_cell}
func = torch.func


def loop(f, init, xs=None, length=None, reverse=False):
    return reference_scan(f, init, xs, length, reverse=reverse)[:2]


def loss_over(scan, problem, **options):
    """A function of weights, initial carry and inputs that uses carry and outputs."""

    def loss(params, init, xs):
        carry, ys = scan(problem.bind(params), init, xs, **options)
        weights = torch.arange(ys.numel(), dtype=ys.dtype).cos().reshape(ys.shape)
        ends = sum((x**2).sum() for x in pytree.tree_leaves(carry))
        return ends + (weights * ys**2).sum()

    return loss


def arguments_of(problem):
    return problem.params, problem.init, problem.xs


def gradients(scan, problem, create_graph=False, **options):
    arguments = pytree.tree_map(
        lambda x: x.clone().requires_grad_(), arguments_of(problem)
    )
    value = loss_over(scan, problem, **options)(*arguments)
    leaves = pytree.tree_leaves(arguments)
    return leaves, torch.autograd.grad(
        value, leaves, create_graph=create_graph, materialize_grads=True
    )


class TestReverseMode:
    @pytest.mark.parametrize(
        ("name", "length", "options"),
        [
            ("gru", 1, {}),
            ("tanh", 2, {}),
            ("tanh", 3, {"reverse": True}),
            ("gru", 100, {"window": 30}),
            ("lstm", 20, {"reverse": True, "window": 7}),
            ("lstm", 100, {}),
        ],
    )
    def test_agrees_with_the_loop(self, name, length, options):
        problem = CELLS[name](1, length)
        actual = gradients(scan, problem, solver="deer", **options)
        reverse = options.get("reverse", False)
        assert_close(actual, gradients(loop, problem, reverse=reverse))

    def test_of_no_steps(self):
        init = torch.ones(2, 3, dtype=DOUBLE, requires_grad=True)
        xs = torch.ones(0, 2, 3, dtype=DOUBLE)
        carry, _ = scan(lambda h, x: (h + x, h), init, xs, solver="deer")
        (actual,) = torch.autograd.grad((carry**2).sum(), init)
        assert_close(actual, 2 * init)

    def test_is_at_the_solution_whatever_the_solver(self):
        problem = lstm(1, 20)
        actual = gradients(scan, problem, solver="jacobi")
        assert_close(actual, gradients(loop, problem), 1e-10)
        # Jacobi's own transition is zero, so these would be too if they were its.
        assert actual[1][0].abs().max() > 0.1

    def test_of_large_states_after_an_approximate_forward(self):
        # 66 entries: no Jacobian is formed for the gradient.
        problem = lstm(1, 12, 33)
        actual = gradients(scan, problem, solver="quasi-deer")
        assert_close(actual, gradients(loop, problem), 1e-9)

    def test_agrees_with_differences(self):
        problem = lstm(3, 10)
        loss = loss_over(ft.partial(scan, solver="deer"), problem)
        point = arguments_of(problem)
        direction = pytree.tree_map(lambda x: torch.sin(3 * x) + 0.1, point)
        _, gradient = gradients(scan, problem, solver="deer")
        pairs = zip(gradient, pytree.tree_leaves(direction), strict=True)
        actual = sum((g * v).sum() for g, v in pairs)
        at = lambda point: loss(*point)
        expected = directional_derivative(at, point, direction, 3e-3)
        assert_close(actual, expected, 1e-9)

    @pytest.mark.parametrize("window", [None, 4])
    def test_of_the_gradient(self, window):
        problem = gru(2, 10)

        def second(scan, **options):
            leaves, first = gradients(scan, problem, True, **options)
            total = sum((g**2).sum() for g in first)
            return first, torch.autograd.grad(total, leaves)

        actual = second(scan, solver="deer", window=window)
        assert_close(actual, second(loop), 1e-11)

    def test_of_chunks_and_other_scans(self):
        problem = gru(2, 20)
        solver = DEER(rtol=1e-13, atol=1e-13, chunk=7, scan="blocked")
        actual = gradients(scan, problem, solver=solver)
        assert_close(actual, gradients(loop, problem))

    def test_with_respect_to_the_guess_is_zero(self):
        problem = tanh_cell(4, 10)
        guess = torch.full((10, 2, 3), 0.3, dtype=DOUBLE, requires_grad=True)
        f, init, xs = problem.bind(), problem.init, problem.xs
        _, ys = scan(f, init.requires_grad_(), xs, solver="deer", guess=guess)
        (of_guess,) = torch.autograd.grad(ys.sum(), guess, materialize_grads=True)
        assert not of_guess.any()

    def test_of_a_complex_carry(self):
        def f(carry, x):
            z, h = carry
            z = 0.5j * z.conj() + x + h
            return (z, torch.tanh(0.4 * h + z.imag)), z.abs()

        angles = torch.arange(8.0, dtype=DOUBLE)[:, None]
        xs = torch.polar(torch.ones_like(angles), angles).requires_grad_()
        z = torch.tensor([0.3 + 0.2j], dtype=torch.complex128, requires_grad=True)
        h = torch.tensor([0.1], dtype=DOUBLE, requires_grad=True)

        def gradient(scan):
            carry, ys = scan(f, (z, h), xs)
            total = (ys**2).sum() + carry[0].abs().sum() + carry[1].sum()
            return torch.autograd.grad(total, (z, h, xs))

        assert_close(gradient(ft.partial(scan, solver="deer")), gradient(loop))

    def test_past_integers(self):
        def f(carry, x):
            n, h = carry
            h = torch.tanh(0.5 * h + x["float"] * torch.cos(n.double()) + x["int"])
            return (n + x["int"], h), h * n

        floats = torch.ones(6, 1, dtype=DOUBLE, requires_grad=True)
        h = torch.full((1,), 0.3, dtype=DOUBLE, requires_grad=True)
        xs = {"float": floats, "int": torch.arange(6)[:, None]}

        def gradient(scan):
            (_, last), ys = scan(f, (torch.tensor([1]), h), xs)
            return torch.autograd.grad(last.sum() + ys.sum(), (h, floats))

        assert_close(gradient(ft.partial(scan, solver="deer")), gradient(loop))

    def test_of_modules(self):
        torch.manual_seed(0)
        cell, head = torch.nn.LSTMCell(2, 3).double(), torch.nn.Linear(3, 1).double()
        variables = [*cell.parameters(), *head.parameters()]
        xs, zero = torch.randn(15, 4, 2, dtype=DOUBLE), torch.zeros(4, 3, dtype=DOUBLE)

        def f(carry, x):
            h, c = cell(x, carry)
            return (h, c), head(h)

        def gradient(scan):
            _, ys = scan(f, (zero, zero), xs)
            return torch.autograd.grad((ys**2).sum(), variables)

        for options in ({}, {"window": 4}):
            deer = ft.partial(scan, solver="deer", **options)
            assert_close(gradient(deer), gradient(loop))

    def test_of_narrow_dtypes_has_their_dtype(self):
        problem = gru(2, 12, dtype=torch.float32)
        actual = gradients(scan, problem, solver="deer")
        assert_close(actual, gradients(loop, problem), 1e-5)


class TestTransforms:
    @pytest.mark.parametrize(
        ("solver", "window"), [("deer", None), ("deer", 4), ("jacobi", None)]
    )
    def test_agree_with_the_loop(self, solver, window):
        def everything(scan):
            problem = tanh_cell(5, 6, size=2, inputs=1)
            loss = loss_over(scan, problem)
            arguments = params, init, xs = arguments_of(problem)
            tangents = pytree.tree_map(torch.cos, arguments)
            of_init = lambda init: loss(params, init, xs)
            of_weights = lambda weights: loss({**params, "W": weights}, init, xs)
            inits = torch.stack([init, 2 * init, -init])
            return {
                "gradient": func.grad(loss, (0, 1, 2))(*arguments),
                "tangent": func.jvp(loss, arguments, tangents),
                "hessian": func.hessian(of_weights)(params["W"]),
                "over reverse": func.jacrev(func.grad(of_init))(init),
                "batched": func.vmap(func.grad(of_init))(inits),
                "over vmap": func.grad(lambda x: func.vmap(of_init)(x).sum())(inits),
            }

        actual = everything(ft.partial(scan, solver=solver, window=window))
        assert_close(actual, everything(loop), 1e-10)

    def test_with_a_counter_in_the_carry(self):
        def f(carry, x):
            n, h = carry
            return (n + 1, torch.tanh(h * torch.cos(n.double()))), h

        def loss(scan, h):
            return scan(f, (torch.tensor([1]), h), length=5)[1].sum()

        h = torch.full((1,), 0.3, dtype=DOUBLE)
        actual, expected = (
            func.grad(ft.partial(loss, each))(h)
            for each in (ft.partial(scan, solver="deer"), loop)
        )
        assert_close(actual, expected)


def test_windows_bound_the_largest_tensor():
    length, size = 2048, 16
    problem = tanh_cell(6, length, size, 1, 1, torch.float32)

    def largest(**options):
        return largest_bytes(lambda: gradients(scan, problem, solver="deer", **options))

    assert largest() >= 4 * length * size**2
    assert largest(window=64) <= 2 * 4 * length * size
