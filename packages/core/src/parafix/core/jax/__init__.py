"""parafix for JAX: fixed points, chains, affine scans, and what they promise."""

from .._causality import Causality as Causality
from ._adjoint import (
    AbstractDenseTangent as AbstractDenseTangent,
    ImplicitAdjoint as ImplicitAdjoint,
    OneStepAdjoint as OneStepAdjoint,
    PhantomAdjoint as PhantomAdjoint,
    UnrolledAdjoint as UnrolledAdjoint,
)
from ._affine_scan import affine_scan as affine_scan
from ._attach import attach as attach
from ._causal import AbstractCausalSweep as AbstractCausalSweep
from ._chain import Chain as Chain, jacobian as jacobian, Leaf as Leaf
from ._chain_adjoint import ChainAdjoint as ChainAdjoint
from ._check import (
    checked_count as checked_count,
    checked_tolerance as checked_tolerance,
    default_tolerance as default_tolerance,
)
from ._check_causal import check_causal as check_causal
from ._check_structure import check_structure as check_structure
from ._damping import AbstractDamping as AbstractDamping
from ._dense import fixed_point as fixed_point, root_find as root_find
from ._iteration import AbstractIteration as AbstractIteration
from ._jacobi import Jacobi as Jacobi
from ._linear import GMRES as GMRES
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
from ._scan.algebra import compose as compose
from ._solution import Solution as Solution
from ._solve_causal import solve_causal as solve_causal
from ._solve_chain import assess as assess, solve_chain as solve_chain
from ._solver import as_sweep as as_sweep, Sequential as Sequential
from ._structure import (
    AbstractStructure as AbstractStructure,
    Blocks as Blocks,
    Custom as Custom,
    Dense as Dense,
    Diagonal as Diagonal,
    structure_of as structure_of,
    Structured as Structured,
)
from ._sweep import AbstractSweep as AbstractSweep


__all__ = [
    "GMRES",
    "RESULTS",
    "AbstractCausalSweep",
    "AbstractDamping",
    "AbstractDenseTangent",
    "AbstractFusedScan",
    "AbstractIteration",
    "AbstractScan",
    "AbstractStructure",
    "AbstractSweep",
    "Anderson",
    "AssociativeScan",
    "BlockedScan",
    "Blocks",
    "Broyden",
    "Causality",
    "Chain",
    "ChainAdjoint",
    "Custom",
    "Dense",
    "Diagonal",
    "FixedPoint",
    "ImplicitAdjoint",
    "Jacobi",
    "Leaf",
    "Newton",
    "NewtonKrylov",
    "OneStepAdjoint",
    "PhantomAdjoint",
    "Sequential",
    "SequentialScan",
    "Solution",
    "Structured",
    "TritonScan",
    "UnrolledAdjoint",
    "affine_scan",
    "as_sweep",
    "assess",
    "attach",
    "check_causal",
    "check_structure",
    "checked_count",
    "checked_tolerance",
    "compose",
    "default_tolerance",
    "fixed_point",
    "jacobian",
    "root_find",
    "solve_causal",
    "solve_chain",
    "structure_of",
]
