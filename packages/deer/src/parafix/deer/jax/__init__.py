"""parafix-deer for JAX: recurrences in parallel over time."""

from ._auto import Choice as Choice, choose as choose
from ._damping import AdaptiveDamping as AdaptiveDamping
from ._deer import DEER as DEER
from ._elk import ELK as ELK, QuasiELK as QuasiELK
from ._quasi import Picard as Picard, QuasiDEER as QuasiDEER
from ._scan import scan as scan
from ._trust_region import TrustRegion as TrustRegion


__all__ = [
    "DEER",
    "ELK",
    "AdaptiveDamping",
    "Choice",
    "Picard",
    "QuasiDEER",
    "QuasiELK",
    "TrustRegion",
    "choose",
    "scan",
]
