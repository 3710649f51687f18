"""parafix-deer for PyTorch: recurrences in parallel over time."""

from ._auto import Choice as Choice, choose as choose
from ._auto_layer import choose_layer as choose_layer, LayerChoice as LayerChoice
from ._check_structure import check_structure as check_structure
from ._damping import AdaptiveDamping as AdaptiveDamping
from ._deer import DEER as DEER
from ._diagonal_cells import (
    DiagonalGRUCell as DiagonalGRUCell,
    DiagonalLSTMCell as DiagonalLSTMCell,
)
from ._elk import ELK as ELK, QuasiELK as QuasiELK
from ._layer import LayerInfo as LayerInfo
from ._mixing_cells import (
    LEMCell as LEMCell,
    MultiHeadGRUCell as MultiHeadGRUCell,
)
from ._modules import GRU as GRU, LSTM as LSTM, RNN as RNN
from ._one_step import (
    AbstractExplicitRungeKutta as AbstractExplicitRungeKutta,
    AbstractOneStep as AbstractOneStep,
    ClassicalRK4 as ClassicalRK4,
    Euler as Euler,
    Heun as Heun,
    Heun3 as Heun3,
    ImplicitMidpoint as ImplicitMidpoint,
    Midpoint as Midpoint,
    RK4 as RK4,
)
from ._quasi import Picard as Picard, QuasiDEER as QuasiDEER
from ._scan import scan as scan
from ._solve_ivp import solve_ivp as solve_ivp
from ._trust_region import TrustRegion as TrustRegion


__all__ = [
    "DEER",
    "ELK",
    "GRU",
    "LSTM",
    "RK4",
    "RNN",
    "AbstractExplicitRungeKutta",
    "AbstractOneStep",
    "AdaptiveDamping",
    "Choice",
    "ClassicalRK4",
    "DiagonalGRUCell",
    "DiagonalLSTMCell",
    "Euler",
    "Heun",
    "Heun3",
    "ImplicitMidpoint",
    "LEMCell",
    "LayerChoice",
    "LayerInfo",
    "Midpoint",
    "MultiHeadGRUCell",
    "Picard",
    "QuasiDEER",
    "QuasiELK",
    "TrustRegion",
    "check_structure",
    "choose",
    "choose_layer",
    "scan",
    "solve_ivp",
]
