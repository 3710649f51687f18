import operator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def default_tolerance(dtype: Any) -> float:
    """`eps^(3/4)`: 2e-12 in float64, 6e-6 in float32, 6e-3 in float16."""
    return float(jnp.finfo(dtype).eps) ** 0.75


def checked_tolerance(name: str, value: Any, default: Any) -> Any:
    """`value`, a non-negative number or one for each entry; `default` if `None`."""
    if value is None:
        return default
    if isinstance(value, Tracer):
        return value
    try:
        ok = bool(np.all(np.asarray(value, float) >= 0))
    except (TypeError, ValueError) as e:
        raise TypeError(f"`{name}` must be a number, got {value!r}.") from e
    if not ok:
        raise ValueError(f"`{name}` must be non-negative, got {value}.")
    return float(value) if np.ndim(value) == 0 else value


def checked_count(name: str, value: Any) -> int | None:
    """`value`, a positive integer or `None`."""
    if value is None:
        return None
    try:
        count = operator.index(value)
    except TypeError as e:
        message = f"`{name}` must be an integer or None, got {value!r}."
        raise TypeError(message) from e
    if isinstance(value, bool):
        raise TypeError(f"`{name}` must be an integer or None, got {value!r}.")
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}.")
    return count
