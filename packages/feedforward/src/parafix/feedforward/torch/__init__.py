"""parafix-feedforward for PyTorch: causal programs, all entries at once."""

from parafix.core.torch import (
    Causality as Causality,
    check_causal as check_causal,
    solve_causal as solve_causal,
)


__all__ = ["Causality", "check_causal", "solve_causal"]
