import operator
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer


def default_tolerance(dtype: Any) -> float:
    """`eps^(3/4)`: 2e-12 in float64, 6e-6 in float32, 6e-3 in float16."""
    return float(jnp.finfo(dtype).eps) ** 0.75


def checked_tolerance(name: str, value: Any, dtype: Any) -> Any:
    """`value`, or the default of `dtype` if it is `None`."""
    if value is None:
        return default_tolerance(dtype)
    if isinstance(value, Tracer):
        return value
    try:
        ok = float(value) >= 0
    except (TypeError, ValueError) as e:
        raise TypeError(f"`{name}` must be a number, got {value!r}.") from e
    if not ok:
        raise ValueError(f"`{name}` must be non-negative, got {value}.")
    return float(value)


def checked_count(name: str, value: Any) -> int | None:
    """`value`, a positive integer or `None`."""
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"`{name}` must be an integer or None, got {value!r}.")
    count = operator.index(value)
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}.")
    return count
