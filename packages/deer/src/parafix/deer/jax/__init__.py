"""parafix-deer for JAX: recurrences in parallel over time."""

from typing import Any, TYPE_CHECKING

from ._auto import Choice as Choice, choose as choose
from ._cells import (
    DiagonalGRUCell as DiagonalGRUCell,
    DiagonalLSTMCell as DiagonalLSTMCell,
    LEMCell as LEMCell,
    MultiHeadGRUCell as MultiHeadGRUCell,
)
from ._check_structure import check_structure as check_structure
from ._damping import AdaptiveDamping as AdaptiveDamping
from ._deer import DEER as DEER
from ._elk import ELK as ELK, QuasiELK as QuasiELK
from ._multistep import multistep as multistep
from ._quasi import Picard as Picard, QuasiDEER as QuasiDEER
from ._scan import scan as scan
from ._seq1d import seq1d as seq1d
from ._solve_idae import solve_idae as solve_idae
from ._solve_ivp import solve_ivp as solve_ivp
from ._trust_region import TrustRegion as TrustRegion


if TYPE_CHECKING:
    from ._diffeqsolve import diffeqsolve as diffeqsolve


__all__ = [
    "DEER",
    "ELK",
    "AdaptiveDamping",
    "Choice",
    "DiagonalGRUCell",
    "DiagonalLSTMCell",
    "LEMCell",
    "MultiHeadGRUCell",
    "Picard",
    "QuasiDEER",
    "QuasiELK",
    "TrustRegion",
    "check_structure",
    "choose",
    "diffeqsolve",
    "multistep",
    "scan",
    "seq1d",
    "solve_idae",
    "solve_ivp",
]


# Diffrax is loaded by those who solve differential equations, and by nobody else.
def __getattr__(name: str) -> Any:
    if name != "diffeqsolve":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ._diffeqsolve import diffeqsolve
    except ModuleNotFoundError as e:
        if e.name != "diffrax":
            raise
        raise ModuleNotFoundError(
            "`diffeqsolve` needs Diffrax: pip install 'parafix-deer[jax]'",
            name="diffrax",
        ) from e
    return diffeqsolve
