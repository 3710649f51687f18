"""parafix-deer for PyTorch: recurrences in parallel over time."""

from ._auto_layer import choose_layer as choose_layer, LayerChoice as LayerChoice
from ._deer import DEER as DEER
from ._layer import LayerInfo as LayerInfo
from ._modules import GRU as GRU, LSTM as LSTM, RNN as RNN


__all__ = ["DEER", "GRU", "LSTM", "RNN", "LayerChoice", "LayerInfo", "choose_layer"]
