"""Cells of several kinds, each a step and what it starts from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from parafix.core.jax import AbstractStructure, Dense, Diagonal

from .gru import gru, INPUTS, Weights


Step = Callable[[Any, Any, Any], tuple[Any, Any]]


class Cell(NamedTuple):
    """`step(weights, carry, x) -> (carry, y)`, and numbers to run it with.

    - `make`: from a generator and the number of entries `n` of the state to weights
        uniform in `±1/sqrt(n)`, in float32, and a carry of zeros.
    """

    step: Step
    make: Callable[[np.random.Generator, int], tuple[Any, Any]]
    structure: AbstractStructure = Dense()


def _uniform(draw, size, *shape):
    bound = size**-0.5
    return draw.uniform(-bound, bound, shape).astype(np.float32)


def _gru_step(weights, state, x):
    state = gru(weights, state, x)
    return state, state


def _make_gru(draw, size):
    rows = 3 * size
    shapes = Weights((rows, INPUTS), (rows, size), (rows,), (rows,))
    weights = Weights(*(_uniform(draw, size, *shape) for shape in shapes))
    return weights, np.zeros(size, np.float32)


def _tanh_step(weights, state, x):
    recurrent, inputs, bias = weights
    state = jnp.tanh(recurrent @ state + inputs @ x + bias)
    return state, state


def _make_tanh(draw, size):
    shapes = ((size, size), (size, INPUTS), (size,))
    weights = tuple(_uniform(draw, size, *shape) for shape in shapes)
    return weights, np.zeros(size, np.float32)


def _lstm_step(weights, carry, x):
    recurrent, inputs, bias = weights
    hidden, cell = carry
    gates = recurrent @ hidden + inputs @ x + bias
    entry, forget, candidate, exit_ = jnp.split(gates, 4)
    cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(entry) * jnp.tanh(candidate)
    hidden = jax.nn.sigmoid(exit_) * jnp.tanh(cell)
    return (hidden, cell), hidden


def _make_lstm(draw, size):
    # Half of the entries are hidden states, half are cells.
    units = size // 2
    shapes = ((4 * units, units), (4 * units, INPUTS), (4 * units,))
    weights = tuple(_uniform(draw, units, *shape) for shape in shapes)
    return weights, (np.zeros(units, np.float32),) * 2


def _diagonal_step(weights, state, x):
    recurrent, inputs, bias = weights
    reset_i, update_i, candidate_i = jnp.split(inputs @ x + bias, 3)
    reset = jax.nn.sigmoid(reset_i + recurrent[0] * state)
    update = jax.nn.sigmoid(update_i + recurrent[1] * state)
    candidate = jnp.tanh(candidate_i + reset * recurrent[2] * state)
    state = (1 - update) * candidate + update * state
    return state, state


def _make_diagonal(draw, size):
    shapes = ((3, size), (3 * size, INPUTS), (3 * size,))
    weights = tuple(_uniform(draw, size, *shape) for shape in shapes)
    return weights, np.zeros(size, np.float32)


CELLS = {
    "GRU": Cell(_gru_step, _make_gru),
    "tanh": Cell(_tanh_step, _make_tanh),
    "LSTM": Cell(_lstm_step, _make_lstm),
    "diagonal GRU": Cell(_diagonal_step, _make_diagonal, Diagonal()),
}
