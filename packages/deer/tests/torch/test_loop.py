"""A loop whose derivatives are those of the chain at its states."""

import functools as ft

import jaxtyping
import pytest
import torch
from torch.utils import _pytree as pytree

from parafix.core.testing.torch import assert_close, gru, lstm, reference_scan
from parafix.core.torch import ChainAdjoint, RESULTS
from parafix.deer.torch import DiagonalGRUCell, scan


LENGTH = 13
func = torch.func
loop = ft.partial(scan, solver="sequential", adjoint="implicit")


def plain(f, init, xs, reverse=False):
    return reference_scan(f, init, xs, reverse=reverse)[:2]


def weighted(tree):
    """A number that depends on every float of a tree, in no symmetric way."""
    leaves = [x for x in pytree.tree_leaves(tree) if x.is_floating_point()]
    return sum(
        (x**2 * torch.arange(x.numel(), dtype=x.dtype).cos().reshape(x.shape)).sum()
        for x in leaves
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("make", [gru, lstm])
def test_derivatives_of_every_kind(make, reverse):
    problem = make(0, LENGTH)
    point = (problem.params, problem.init, problem.xs)

    def loss(run, params, init, xs):
        return weighted(run(problem.bind(params), init, xs, reverse=reverse))

    places = (0, 1, 2)
    gradient = lambda run: func.grad(ft.partial(loss, run), places)
    for transform in (
        lambda run: ft.partial(loss, run),
        gradient,
        lambda run: lambda *p: func.jvp(ft.partial(loss, run), p, p)[1],
        lambda run: func.grad(lambda *p: weighted(gradient(run)(*p)), places),
        lambda run: lambda *p: func.jvp(gradient(run), p, p)[1],
    ):
        actual, expected = (transform(run)(*point) for run in (loop, plain))
        assert_close(actual, expected, 1e-10)


def test_by_backward_with_weights_that_are_closed_over():
    cell = DiagonalGRUCell(3, 4, dtype=torch.float64)
    xs = torch.randn(LENGTH, 2, 3, dtype=torch.float64)
    init = torch.ones(2, 4, dtype=torch.float64)
    found = []
    for adjoint in ("implicit", ChainAdjoint(scan="sequential", chunk=5), None):
        out = scan(cell, init, xs, solver="sequential", adjoint=adjoint)
        found.append(torch.autograd.grad(weighted(out), list(cell.parameters())))
    assert_close(found[0], found[2], 1e-12)
    assert_close(found[1], found[2], 1e-12)


def test_records_no_loop():
    problem = gru(0, LENGTH)
    calls = []

    def f(h, x):
        calls.append(torch.is_grad_enabled())
        return problem.bind()(h, x)

    init = problem.init.requires_grad_()
    out = loop(f, init, problem.xs)
    # Once to see what it uses, and once for outputs that are no carries.
    assert sum(calls) < 5 < LENGTH
    assert_close(out, plain(problem.bind(), init, problem.xs), 1e-12)
    with torch.no_grad():
        calls.clear()
        loop(f, init, problem.xs)
    assert len(calls) == LENGTH


def test_with_drivers_and_a_solution():
    problem = gru(0, LENGTH)

    def f(carry, x):
        h, count = carry
        h, y = problem.bind()(h, x + count[:, None] / 100)
        return (h, count + 1), (y, count)

    samples = len(problem.init)
    init = (problem.init.requires_grad_(), torch.arange(samples))
    found = []
    for adjoint in ("implicit", None):
        out, solution = scan(
            f,
            init,
            problem.xs,
            solver="sequential",
            adjoint=adjoint,
            return_solution=True,
        )
        assert (solution.result == RESULTS.successful).all()
        loss = weighted((out, solution.value))
        found.append((out, *torch.autograd.grad(loss, init[0])))
    assert_close(found[0], found[1], 1e-12)


def test_a_counter_of_floats_is_looped_through():
    def f(carry, x):
        h, hits = carry
        h = torch.tanh(h + x) * (1 + hits[:, None] / 100)
        return (h, hits + (h > 0).sum(-1)), h

    xs = torch.linspace(-1, 1, 2 * LENGTH, dtype=torch.float64).reshape(LENGTH, 1, 2)
    h = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    init = (h, torch.zeros(1, dtype=torch.int64))
    found = [
        torch.autograd.grad(weighted(run(f, init, xs)), h) for run in (loop, plain)
    ]
    assert_close(*found, 0)


def test_resets_take_the_loop():
    problem = gru(0, LENGTH)
    resets = torch.arange(LENGTH) % 5 == 0
    init = problem.init.requires_grad_()
    found = []
    for adjoint in ("implicit", None):
        out = scan(
            problem.bind(),
            init,
            problem.xs,
            solver="sequential",
            adjoint=adjoint,
            resets=resets,
        )
        found.append(torch.autograd.grad(weighted(out), init))
    assert_close(*found, 0)


def test_a_nan_reaches_the_gradients_that_it_reaches_in_the_loop():
    problem = gru(0, LENGTH)
    xs = problem.xs.clone()
    xs[6, 0] = torch.nan
    found = []
    for run in (loop, plain):
        point = [x.clone().requires_grad_() for x in (problem.init, xs)]
        ys = run(problem.bind(), *point)[1]
        some = torch.zeros_like(ys)
        some[[3, 6, 9]] = 1
        found.append(torch.autograd.grad(ys, point, some))
    for actual, expected in zip(*found, strict=True):
        assert torch.isnan(expected).any()
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_mixed_samples_are_an_error():
    f = lambda h, x: (h - h.mean(0) + x,) * 2
    with pytest.raises(ValueError, match="mixes samples"):
        loop(f, torch.ones(2, 3, requires_grad=True), torch.ones(LENGTH, 2, 3))


def test_another_adjoint_is_an_error():
    problem = gru(0, 3)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for solver in ("deer", "sequential"):
            with pytest.raises(TypeError, match="`adjoint`.*'one-step'"):
                scan(
                    problem.bind(),
                    problem.init,
                    problem.xs,
                    solver=solver,
                    adjoint="one-step",
                )
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
