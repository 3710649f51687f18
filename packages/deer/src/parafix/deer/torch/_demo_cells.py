from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import nn, Tensor
from torch.nn import functional as F

from .._demo_network import Network
from ._modules import GRU, LSTM, RNN
from ._recurrent import AbstractRecurrent


# Name -> (layer, cell, the order in which `torch.nn` has the gates of the network).
_CLASSES = {
    "gru": (GRU, nn.GRUCell, (0, 1, 2)),
    "lstm": (LSTM, nn.LSTMCell, (0, 1, 3, 2)),
    "tanh": (RNN, nn.RNNCell, (0,)),
}


def layer_of(network: Network, **options: Any) -> AbstractRecurrent:
    """A layer of this package with the weights of `network`.

    `options` are those of the layer: `dtype`, `device`, `solver`, ...
    """
    cls = _CLASSES[network.cell][0]
    return _loaded(cls(*_sizes(network), **options), network, "_l0")


def cell_of(network: Network, **options: Any) -> Callable[[Any, Tensor], Any]:
    """The cell of `torch.nn` with the same weights, as a step: `(carry, x) -> ...`."""
    cls = _CLASSES[network.cell][1]
    cell = _loaded(cls(*_sizes(network), **options), network, "")

    def step(carry, x):
        carry = cell(x, carry)
        return carry, carry[0] if network.cell == "lstm" else carry

    return step


def initial(network: Network, like: Float[Tensor, "..."], batch: int) -> Any:
    """The carry before the first step: zeros, for the LSTM a pair of them."""
    zeros = like.new_zeros(batch, network.hidden)
    return (zeros, zeros.clone()) if network.cell == "lstm" else zeros


def prediction_error(
    readout: Float[Tensor, "c n"],
    offset: Float[Tensor, " c"],
    states: Float[Tensor, "T B n"],
    samples: Float[Tensor, "T B c"],
) -> Float[Tensor, ""]:
    """Mean square of what a linear readout misses of the next sample."""
    return F.mse_loss(F.linear(states[:-1], readout, offset), samples[1:])


def _sizes(network):
    _, hidden, inputs = network.weights["input"].shape
    return inputs, hidden


def _loaded(module, network, suffix):
    order = list(_CLASSES[network.cell][2])
    for ours, theirs in (
        ("input", "weight_ih"),
        ("state", "weight_hh"),
        ("bias", "bias_ih"),
    ):
        weight = torch.from_numpy(network.weights[ours][order]).flatten(0, 1)
        module.get_parameter(theirs + suffix).data.copy_(weight)
    # The network has one bias, `torch.nn` has two of them.
    second = module.get_parameter("bias_hh" + suffix).requires_grad_(False)
    second.data.zero_()
    return module
