"""GPU kernels, one Triton source for both backends.

Importing this imports neither Triton nor a framework: a kernel's source is imported by
the `*_kernel` function that returns it, on first use. The scans called `triton` of the
two backends launch them; what is here is for those who launch a kernel themselves.
"""

from ._available import (
    installed as installed,
    interpreted as interpreted,
    reasons_against_libraries as reasons_against_libraries,
)
from ._diagonal_scan_plan import (
    diagonal_scan_kernel as diagonal_scan_kernel,
    DiagonalScanPlan as DiagonalScanPlan,
    LaneLayout as LaneLayout,
    reasons_against_diagonal_scan as reasons_against_diagonal_scan,
)


__all__ = [
    "DiagonalScanPlan",
    "LaneLayout",
    "diagonal_scan_kernel",
    "installed",
    "interpreted",
    "reasons_against_diagonal_scan",
    "reasons_against_libraries",
]
