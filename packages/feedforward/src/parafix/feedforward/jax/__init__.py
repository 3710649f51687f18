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
from ._invert import invert as invert


__all__ = [
    "AbstractFlowAdapter",
    "Causality",
    "check_causal",
    "invert",
    "register_flow_adapter",
    "solve_causal",
]
