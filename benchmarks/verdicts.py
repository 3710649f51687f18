"""Result codes of parafix, carried out of compiled programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parafix.core.jax import RESULTS


_NAMES = (
    "successful",
    "max_steps_reached",
    "nonfinite",
    "diverged",
    "stalled",
    "ill_conditioned",
    "linear_solve_failed",
)


def codes_of(result: Any) -> jax.Array:
    """A result as an array, for a compiled program to return."""
    return jnp.stack([result == getattr(RESULTS, name) for name in _NAMES])


def worst_result(codes: Any) -> str:
    """The name of the first result other than successful, over all samples."""
    by_sample = np.asarray(codes).reshape(-1, len(_NAMES))
    names = [name for i, name in enumerate(_NAMES) if by_sample[:, i].any()]
    failures = [name for name in names if name != "successful"]
    return failures[0] if failures else names[0] if names else "another failure"
