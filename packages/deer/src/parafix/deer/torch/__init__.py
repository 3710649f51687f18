"""parafix-deer for PyTorch: recurrences in parallel over time."""

from ._auto import Choice as Choice, choose as choose
from ._auto_layer import choose_layer as choose_layer, LayerChoice as LayerChoice
from ._deer import DEER as DEER
from ._layer import LayerInfo as LayerInfo
from ._modules import GRU as GRU, LSTM as LSTM, RNN as RNN
from ._scan import scan as scan


__all__ = [
    "DEER",
    "GRU",
    "LSTM",
    "RNN",
    "Choice",
    "LayerChoice",
    "LayerInfo",
    "choose",
    "choose_layer",
    "scan",
]
