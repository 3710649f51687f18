"""The networks of the demo: their sizes and weights, whatever the framework."""

import dataclasses

import numpy as np
from numpy.typing import NDArray


# Name -> (title, gates, states per unit).
CELLS = {
    "gru": ("GRU (Cho et al. 2014, reset gate after the product)", 3, 1),
    "lstm": ("LSTM (Hochreiter and Schmidhuber 1997, with a forget gate)", 4, 2),
    "tanh": ("tanh cell (Elman 1990)", 1, 1),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A recurrent cell and a linear readout that predicts the next sample.

    The weights are, with `g` gates, `n` units, `d` inputs and `c` predicted columns:
    `input (g, n, d)`, `state (g, n, n)`, `bias (g, n)`, `readout (c, n)` and
    `offset (c,)`. The order of the gates is that of the equations in the cells.
    """

    cell: str
    hidden: int
    weights: dict[str, NDArray[np.float64]]

    @property
    def title(self) -> str:
        return CELLS[self.cell][0]

    @property
    def state_size(self) -> int:
        """How many numbers are carried from one step to the next."""
        return CELLS[self.cell][2] * self.hidden

    @property
    def num_weights(self) -> int:
        return sum(weight.size for weight in self.weights.values())


def network(cell: str, hidden: int, inputs: int, columns: int, seed: int) -> Network:
    """A network with random weights: orthogonal ones between states, as is usual."""
    gates = CELLS[cell][1]
    random = np.random.default_rng(seed)

    def uniform(*shape):
        # Glorot's bound for a layer of as many outputs as inputs.
        return random.uniform(-1, 1, shape) * (3 / shape[-1]) ** 0.5

    weights = {
        "input": uniform(gates, hidden, inputs) / 2,
        "state": np.stack([_orthogonal(random, hidden) for _ in range(gates)]),
        "bias": np.zeros((gates, hidden)),
        "readout": uniform(columns, hidden),
        "offset": np.zeros(columns),
    }
    if cell == "lstm":
        # A forget gate that starts open, so that something is remembered.
        weights["bias"][1] = 1
    return Network(cell, hidden, weights)


def _orthogonal(random: np.random.Generator, size: int) -> NDArray[np.float64]:
    q, r = np.linalg.qr(random.standard_normal((size, size)))
    # Otherwise the signs depend on the algorithm of `qr`.
    return q * np.sign(np.diagonal(r))
