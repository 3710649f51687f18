"""parafix for PyTorch: fixed points, affine scans, and what they promise."""

from ._check import (
    checked_count as checked_count,
    checked_tolerance as checked_tolerance,
    default_tolerance as default_tolerance,
)
from ._result import RESULTS as RESULTS
from ._solution import Solution as Solution


__all__ = [
    "RESULTS",
    "Solution",
    "checked_count",
    "checked_tolerance",
    "default_tolerance",
]
