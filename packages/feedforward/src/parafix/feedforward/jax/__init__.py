"""parafix-feedforward for JAX: causal programs, all entries at once."""

from parafix.core.jax import (
    Causality as Causality,
    check_causal as check_causal,
    solve_causal as solve_causal,
)

from ._gs_jacobi import GSJacobi as GSJacobi
from ._jacobi_gs import JacobiGS as JacobiGS
from ._triangular_anderson import TriangularAnderson as TriangularAnderson


__all__ = [
    "Causality",
    "GSJacobi",
    "JacobiGS",
    "TriangularAnderson",
    "check_causal",
    "solve_causal",
]
