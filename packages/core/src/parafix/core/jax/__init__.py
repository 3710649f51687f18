"""parafix for JAX: affine scans, chains and what they promise."""

from ._adjoint import ChainAdjoint as ChainAdjoint
from ._affine_scan import affine_scan as affine_scan
from ._chain import Chain as Chain, jacobian as jacobian, Leaf as Leaf
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
from ._solve_chain import assess as assess, solve_chain as solve_chain
from ._solver import as_sweep as as_sweep, Sequential as Sequential
from ._sweep import AbstractSweep as AbstractSweep, Jacobi as Jacobi


__all__ = [
    "RESULTS",
    "AbstractScan",
    "AbstractSweep",
    "AssociativeScan",
    "BlockedScan",
    "Chain",
    "ChainAdjoint",
    "Jacobi",
    "Leaf",
    "Sequential",
    "SequentialScan",
    "Solution",
    "affine_scan",
    "as_sweep",
    "assess",
    "checked_count",
    "checked_tolerance",
    "default_tolerance",
    "jacobian",
    "solve_chain",
]
