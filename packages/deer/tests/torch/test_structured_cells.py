"""Cells that declare the structure of their Jacobian, against the loop."""

import copy
import functools as ft

import numpy as np
import pytest
import torch

from parafix.core.testing.torch import assert_close, assert_identical
from parafix.core.torch import Blocks, Dense, Diagonal, RESULTS
from parafix.deer.torch import (
    check_structure,
    DiagonalGRUCell,
    DiagonalLSTMCell,
    LEMCell,
    MultiHeadGRUCell,
    scan,
)


DOUBLE = torch.float64
LENGTH, SAMPLES, INPUTS = 50, 2, 3
CELLS = {
    # The structure, and how many pulls a sweep takes: none, where there is a formula.
    "diagonal GRU": (
        ft.partial(DiagonalGRUCell, INPUTS, 5, dtype=DOUBLE),
        Diagonal(),
        0,
    ),
    "diagonal LSTM": (
        ft.partial(DiagonalLSTMCell, INPUTS, 5, dtype=DOUBLE),
        Blocks(2, leaves=2),
        0,
    ),
    "multi-head GRU": (
        ft.partial(MultiHeadGRUCell, INPUTS, 2, 3, 4, dtype=DOUBLE),
        Blocks(3),
        0,
    ),
    "LEM": (ft.partial(LEMCell, INPUTS, 3, 0.5, dtype=DOUBLE), Dense(), 6),
}


def made(name):
    torch.manual_seed(0)
    cell = CELLS[name][0]()
    xs = torch.randn(LENGTH, SAMPLES, INPUTS, dtype=DOUBLE)
    xs = cell.fold(xs) if isinstance(cell, MultiHeadGRUCell) else xs
    return cell, xs


def moved(carry):
    return tuple(x + 0.3 for x in carry) if isinstance(carry, tuple) else carry + 0.3


def loop(cell, carry, xs):
    ys = []
    for x in xs:
        carry, y = cell(carry, x)
        ys.append(y)
    return carry, torch.stack(ys)


def gradients(solve, cell, xs, **options):
    xs = xs.clone().requires_grad_()
    init = torch.utils._pytree.tree_map(
        lambda x: x.requires_grad_(), moved(cell.initial(SAMPLES))
    )
    carry, ys = solve(cell, init, xs, **options)
    weights = torch.arange(ys.numel(), dtype=DOUBLE).cos().reshape(ys.shape)
    leaves = [*cell.parameters(), xs, *torch.utils._pytree.tree_leaves(init)]
    return (carry, ys), list(torch.autograd.grad((weights * ys).sum(), leaves))


@pytest.mark.parametrize("name", CELLS)
class TestCells:
    def test_values_and_gradients(self, name):
        _, structure, pulls = CELLS[name]
        cell, xs = made(name)
        assert cell.structure == structure
        expected, expected_gradient = gradients(loop, cell, xs)
        # By the formula, if there is one, and by pulls.
        for options in ({}, {"structure": structure}, {"window": 7}):
            solve = ft.partial(scan, solver="deer", **options)
            actual, actual_gradient = gradients(solve, cell, xs)
            assert_close(actual, expected, 1e-9)
            assert_close(actual_gradient, expected_gradient, 1e-8)
            _, solution = solve(
                cell, moved(cell.initial(SAMPLES)), xs, return_solution=True
            )
            assert (solution.result == RESULTS.successful).all()
            stats = solution.stats
            each = structure.num_linear(6) if "structure" in options else pulls
            # Pulls of sweeps, and of the growth of errors.
            least = each * (stats["num_steps"] + 1)
            assert (stats["num_linear"] >= least).all()
            if "window" not in options:
                # (A window that was too short to confirm its end has a certificate.)
                assert (stats["num_steps"] <= 8).all()
                assert_identical(stats["num_linear"], least)

    def test_formulas(self, name):
        # Against forward mode of one sample at one time.
        cell, xs = made(name)
        if not hasattr(cell, "linearised"):
            return
        carry = cell.initial(SAMPLES)
        leaves, tree = torch.utils._pytree.tree_flatten(carry)
        leaves = [torch.randn_like(x) for x in leaves]
        sizes = [x[0].numel() for x in leaves]
        joined = lambda leaves: torch.utils._pytree.tree_unflatten(leaves, tree)
        (new, a) = cell.linearised(joined(leaves), xs[0])
        assert_close(new, cell(joined(leaves), xs[0])[0], 1e-15)
        matrices = cell.structure.dense(a, sum(sizes))
        for b in range(SAMPLES):

            def flat(v, b=b):
                parts = [
                    part.reshape(leaf[:1].shape)
                    for part, leaf in zip(v.split(sizes), leaves, strict=True)
                ]
                out = cell(joined(parts), xs[0, b : b + 1])[0]
                out = torch.utils._pytree.tree_leaves(out)
                return torch.cat([x.flatten() for x in out])

            point = torch.cat([x[b].flatten() for x in leaves])
            expected = torch.func.jacfwd(flat)(point)
            assert_close(matrices[b], expected.detach(), 1e-14)

    def test_declares_the_truth(self, name):
        cell, xs = made(name)
        check_structure(cell, cell.structure, cell.initial(SAMPLES), xs)

    def test_does_not_declare_too_much(self, name):
        # Less would be false: the structure is the smallest there is.
        cell, xs = made(name)
        if isinstance(cell.structure, Diagonal):
            return
        with pytest.raises(ValueError, match="is false"):
            check_structure(cell, Diagonal(), cell.initial(SAMPLES), xs)

    def test_is_a_module(self, name):
        cell, xs = made(name)
        again = copy.deepcopy(cell)
        again.load_state_dict(cell.state_dict())
        assert {key for key, _ in cell.named_parameters()} == {"state", "input", "bias"}
        assert_identical(
            again(again.initial(SAMPLES), xs[0]), cell(cell.initial(SAMPLES), xs[0])
        )

    def test_second_derivatives(self, name):
        cell, xs = made(name)
        xs = xs[:4]

        def second(solve):
            _, ys = solve(cell, cell.initial(SAMPLES), xs)
            parameters = list(cell.parameters())
            first = torch.autograd.grad(ys.sin().sum(), parameters, create_graph=True)
            return list(
                torch.autograd.grad(sum((g**2).sum() for g in first), parameters)
            )

        solve = ft.partial(scan, solver="deer", rtol=1e-12, atol=1e-12)
        assert_close(second(solve), second(loop), 1e-8)


def test_a_stride_is_a_loop_with_a_stride():
    cell, _ = made("multi-head GRU")
    xs = torch.randn(10, SAMPLES, INPUTS, dtype=DOUBLE)
    with torch.no_grad():
        _, ys = scan(cell, cell.initial(SAMPLES), cell.fold(xs), solver="deer")
        ys = cell.unfold(ys, 10)
    # The state at time t from that at time t - 4, by the definition of a GRU.
    parameters = [p.detach().numpy() for p in (cell.state, cell.input, cell.bias)]
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    for b in range(SAMPLES):
        states = {t: np.zeros((2, 3)) for t in range(-4, 0)}
        for t in range(10):
            h = np.zeros((2, 3))
            for k in range(2):
                last = states[t - 4][k]
                w, u, bias = (p[k] for p in parameters)
                a = u @ xs[t, b].numpy() + bias
                reset, update = sigmoid(a[0] + w[0] @ last), sigmoid(a[1] + w[1] @ last)
                new = np.tanh(a[2] + w[2] @ (reset * last))
                h[k] = update * last + (1 - update) * new
            states[t] = h
            np.testing.assert_allclose(ys[t, b], h.ravel(), atol=1e-11)
    with pytest.raises(ValueError, match="`stride` must be at least 1"):
        MultiHeadGRUCell(3, 2, 3, 0)


def test_equations_of_the_lem_cell():
    cell, _ = made("LEM")
    y, z, x = np.array([0.1, -0.4, 0.3]), np.array([0.5, 0.2, -0.9]), np.ones(INPUTS)
    w, v, b = (p.detach().numpy() for p in (cell.state, cell.input, cell.bias))
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    t_1 = 0.5 * sigmoid(w[0] @ y + v[0] @ x + b[0])
    t_2 = 0.5 * sigmoid(w[1] @ y + v[1] @ x + b[1])
    new_z = (1 - t_1) * z + t_1 * np.tanh(w[2] @ y + v[2] @ x + b[2])
    new_y = (1 - t_2) * y + t_2 * np.tanh(w[3] @ new_z + v[3] @ x + b[3])
    with torch.no_grad():
        rows = [torch.tensor(a)[None] for a in (y, z, x)]
        carry, out = cell((rows[0], rows[1]), rows[2])
    np.testing.assert_allclose(carry[0][0], new_y, atol=1e-15)
    np.testing.assert_allclose(carry[1][0], new_z, atol=1e-15)
    assert_identical(out, carry[0])


def test_units_of_a_diagonal_cell_do_not_mix():
    cell, xs = made("diagonal GRU")
    init = cell.initial(SAMPLES)
    with torch.no_grad():
        one = loop(cell, init, xs[:5])[1]
        init[:, 2] = 0.5
        two = loop(cell, init, xs[:5])[1]
    changed = (one != two).any(0).any(0)
    assert changed.tolist() == [False, False, True, False, False]


def test_a_formula_that_is_false():
    cell, xs = made("diagonal GRU")

    class Doubled:
        structure = Diagonal()

        def __call__(self, carry, x):
            return cell(carry, x)

        def linearised(self, carry, x):
            new, a = cell.linearised(carry, x)
            return new, 2 * a

    with pytest.raises(ValueError, match="is false"):
        scan(Doubled(), cell.initial(SAMPLES), xs, solver="deer")
