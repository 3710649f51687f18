"""parafix for PyTorch: fixed points, affine scans, and what they promise."""

from ._affine_scan import affine_scan as affine_scan
from ._check import (
    checked_count as checked_count,
    checked_tolerance as checked_tolerance,
    default_tolerance as default_tolerance,
)
from ._result import RESULTS as RESULTS
from ._scan import (
    AbstractScan as AbstractScan,
    AssociativeScan as AssociativeScan,
    BlockedScan as BlockedScan,
    SequentialScan as SequentialScan,
)
from ._solution import Solution as Solution


__all__ = [
    "RESULTS",
    "AbstractScan",
    "AssociativeScan",
    "BlockedScan",
    "SequentialScan",
    "Solution",
    "affine_scan",
    "checked_count",
    "checked_tolerance",
    "default_tolerance",
]
