"""parafix-feedforward for JAX: causal programs, all entries at once."""

from parafix.core.jax import (
    Causality as Causality,
    check_causal as check_causal,
    solve_causal as solve_causal,
)

from ._adapter import (
    AbstractFlowAdapter as AbstractFlowAdapter,
    register_flow_adapter as register_flow_adapter,
)
from ._gs_jacobi import GSJacobi as GSJacobi
from ._invert import invert as invert
from ._jacobi_gs import JacobiGS as JacobiGS
from ._triangular_anderson import TriangularAnderson as TriangularAnderson


__all__ = [
    "AbstractFlowAdapter",
    "Causality",
    "GSJacobi",
    "JacobiGS",
    "TriangularAnderson",
    "check_causal",
    "invert",
    "register_flow_adapter",
    "solve_causal",
]
