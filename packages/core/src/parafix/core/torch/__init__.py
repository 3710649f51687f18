"""parafix for PyTorch: fixed points, affine scans, and what they promise."""

from ._adjoint import (
    AbstractAdjoint as AbstractAdjoint,
    AbstractDenseTangent as AbstractDenseTangent,
    ImplicitAdjoint as ImplicitAdjoint,
    OneStepAdjoint as OneStepAdjoint,
    PhantomAdjoint as PhantomAdjoint,
    UnrolledAdjoint as UnrolledAdjoint,
)
from ._affine_scan import affine_scan as affine_scan
from ._check import (
    checked_count as checked_count,
    checked_tolerance as checked_tolerance,
    default_tolerance as default_tolerance,
)
from ._dense import fixed_point as fixed_point, root_find as root_find
from ._iteration import AbstractIteration as AbstractIteration
from ._linear import GMRES as GMRES, LU as LU
from ._result import RESULTS as RESULTS
from ._rootfinders import (
    Anderson as Anderson,
    Broyden as Broyden,
    FixedPoint as FixedPoint,
    Newton as Newton,
    NewtonKrylov as NewtonKrylov,
)
from ._scan import (
    AbstractFusedScan as AbstractFusedScan,
    AbstractScan as AbstractScan,
    AssociativeScan as AssociativeScan,
    BlockedScan as BlockedScan,
    SequentialScan as SequentialScan,
    TritonScan as TritonScan,
)
from ._solution import Solution as Solution


__all__ = [
    "GMRES",
    "LU",
    "RESULTS",
    "AbstractAdjoint",
    "AbstractDenseTangent",
    "AbstractFusedScan",
    "AbstractIteration",
    "AbstractScan",
    "Anderson",
    "AssociativeScan",
    "BlockedScan",
    "Broyden",
    "FixedPoint",
    "ImplicitAdjoint",
    "Newton",
    "NewtonKrylov",
    "OneStepAdjoint",
    "PhantomAdjoint",
    "SequentialScan",
    "Solution",
    "TritonScan",
    "UnrolledAdjoint",
    "affine_scan",
    "checked_count",
    "checked_tolerance",
    "default_tolerance",
    "fixed_point",
    "root_find",
]
