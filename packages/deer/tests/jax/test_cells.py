"""Cells that declare the structure of their Jacobian, against the loop."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parafix.core.jax import Blocks, Dense, Diagonal, RESULTS
from parafix.core.testing.jax import assert_close, python_loop
from parafix.deer.jax import (
    check_structure,
    DiagonalGRUCell,
    DiagonalLSTMCell,
    LEMCell,
    MultiHeadGRUCell,
    scan,
)


LENGTH, INPUTS = 50, 3
F64 = jnp.float64
CELLS = {
    # The structure, and how many tangents a sweep takes.
    "diagonal GRU": (
        lambda key: DiagonalGRUCell(INPUTS, 5, key=key, dtype=F64),
        Diagonal(),
        1,
    ),
    "diagonal LSTM": (
        lambda key: DiagonalLSTMCell(INPUTS, 5, key=key, dtype=F64),
        Blocks(2, leaves=2),
        2,
    ),
    "multi-head GRU": (
        lambda key: MultiHeadGRUCell(INPUTS, 2, 3, 4, key=key, dtype=F64),
        Blocks(3),
        3,
    ),
    "LEM": (lambda key: LEMCell(INPUTS, 3, 0.5, key=key, dtype=F64), Dense(), 6),
}


def sequence(cell):
    xs = jax.random.normal(jax.random.key(7), (LENGTH, INPUTS), F64)
    return cell.fold(xs) if isinstance(cell, MultiHeadGRUCell) else xs


@pytest.mark.parametrize("name", CELLS)
def test_declares_the_truth(name):
    cell = CELLS[name][0](jax.random.key(1))
    check_structure(cell, cell.structure, cell.initial(), sequence(cell))


@pytest.mark.parametrize("name", CELLS)
def test_does_not_declare_too_much(name):
    # Less would be false: the structure is the smallest there is.
    cell = CELLS[name][0](jax.random.key(1))
    if isinstance(cell.structure, Diagonal):
        return
    with pytest.raises(ValueError, match="is false"):
        check_structure(cell, Diagonal(), cell.initial(), sequence(cell))


class TestCells:
    @pytest.mark.parametrize(
        "name",
        [
            "diagonal GRU",
            "multi-head GRU",
            pytest.param("diagonal LSTM", marks=pytest.mark.slow),
            pytest.param("LEM", marks=pytest.mark.slow),
        ],
    )
    def test_values_and_gradients(self, name):
        make, structure, tangents = CELLS[name]
        cell = make(jax.random.key(0))
        xs = sequence(cell)
        assert cell.structure == structure

        def loss(solve, cell, init, xs):
            (carry, ys), *solution = solve(cell, init, xs)
            weights = jnp.cos(jnp.arange(ys.size, dtype=F64)).reshape(ys.shape)
            return (weights * ys).sum(), (carry, ys, solution)

        def gradient(solve):
            of = jax.value_and_grad(ft.partial(loss, solve), (0, 1, 2), has_aux=True)
            return jax.jit(of)

        solve = ft.partial(scan, solver="deer", return_solution=True)
        init = jax.tree.map(lambda x: x + 0.3, cell.initial())
        (_, (carry, ys, (solution,))), actual = gradient(solve)(cell, init, xs)
        plain = lambda cell, *data: (lax.scan(lambda h, x: cell(h, x), *data),)
        (_, expected), expected_gradient = gradient(plain)(cell, init, xs)
        assert_close((carry, ys), expected[:2], 1e-9)
        assert_close(actual, expected_gradient, 1e-8)
        assert solution.result == RESULTS.successful
        sweeps = solution.stats["num_steps"]
        assert sweeps <= 8
        # Tangents of sweeps, and of the growth of errors.
        assert solution.stats["num_linear"] == tangents * (sweeps + 1)


def test_a_stride_is_a_loop_with_a_stride():
    cell = MultiHeadGRUCell(INPUTS, 2, 3, 4, key=jax.random.key(0), dtype=F64)
    xs = jax.random.normal(jax.random.key(7), (10, INPUTS), F64)
    _, ys = scan(cell, cell.initial(), cell.fold(xs), solver="deer")
    ys = cell.unfold(ys, 10)
    # The state at time t from that at time t - 4, by the definition of a GRU.
    states = {t: np.zeros((2, 3)) for t in range(-4, 0)}
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    for t in range(10):
        h = np.zeros((2, 3))
        for k in range(2):
            last = states[t - 4][k]
            w, u, b = (np.asarray(p[k]) for p in (cell.state, cell.input, cell.bias))
            a = u @ np.asarray(xs[t]) + b
            reset, update = sigmoid(a[0] + w[0] @ last), sigmoid(a[1] + w[1] @ last)
            new = np.tanh(a[2] + w[2] @ (reset * last))
            h[k] = update * last + (1 - update) * new
        states[t] = h
        np.testing.assert_allclose(ys[t], h.ravel(), atol=1e-11)


def test_equations_of_the_lem_cell():
    cell = LEMCell(INPUTS, 3, 0.5, key=jax.random.key(0), dtype=F64)
    y, z, x = np.array([0.1, -0.4, 0.3]), np.array([0.5, 0.2, -0.9]), np.ones(INPUTS)
    w, v, b = (np.asarray(p) for p in (cell.state, cell.input, cell.bias))
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    t_1 = 0.5 * sigmoid(w[0] @ y + v[0] @ x + b[0])
    t_2 = 0.5 * sigmoid(w[1] @ y + v[1] @ x + b[1])
    new_z = (1 - t_1) * z + t_1 * np.tanh(w[2] @ y + v[2] @ x + b[2])
    new_y = (1 - t_2) * y + t_2 * np.tanh(w[3] @ new_z + v[3] @ x + b[3])
    carry, out = cell((jnp.asarray(y), jnp.asarray(z)), jnp.asarray(x))
    np.testing.assert_allclose(carry[0], new_y, atol=1e-15)
    np.testing.assert_allclose(carry[1], new_z, atol=1e-15)
    np.testing.assert_array_equal(out, carry[0])


def test_units_of_a_diagonal_cell_do_not_mix():
    cell = DiagonalGRUCell(INPUTS, 5, key=jax.random.key(0), dtype=F64)
    xs = sequence(cell)
    moved = cell.initial().at[2].set(0.5)
    one = python_loop(cell, cell.initial(), xs[:5])[1]
    two = python_loop(cell, moved, xs[:5])[1]
    changed = np.asarray(one != two).any(0)
    np.testing.assert_array_equal(changed, [False, False, True, False, False])
