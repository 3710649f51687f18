import operator
from typing import Any

import torch


def default_tolerance(dtype: Any) -> float:
    """`eps^(3/4)`: 2e-12 in float64, 6e-6 in float32, 6e-3 in float16."""
    return torch.finfo(dtype).eps ** 0.75


def checked_tolerance(name: str, value: Any, default: Any) -> Any:
    """`value`, a non-negative number or a tensor; `default` if `None`."""
    if value is None:
        return default
    if type(value) in (int, float):
        # The usual case, without a tensor.
        if not value >= 0:
            raise ValueError(f"`{name}` must be non-negative, got {value}.")
        return float(value)
    message = (
        f"`{name}` must be a number, or a tensor with one per entry, got {value!r}."
    )
    try:
        # A Python number becomes float64, where a small negative one stays negative.
        wide = None if hasattr(value, "dtype") else torch.float64
        values = torch.as_tensor(value, dtype=wide)
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(message) from e
    if values.is_complex() or (values.ndim and not isinstance(value, torch.Tensor)):
        # Solvers keep what they were given, and multiply with it.
        raise TypeError(message)
    ok = bool((values >= 0).all())
    if not ok:
        raise ValueError(f"`{name}` must be non-negative, got {value}.")
    return float(value) if values.ndim == 0 else value


def checked_count(name: str, value: Any) -> int | None:
    """`value`, a positive integer or `None`."""
    if value is None:
        return None
    message = f"`{name}` must be an integer or None, got {value!r}."
    if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
        raise TypeError(message)
    try:
        count = operator.index(value)
    except TypeError as e:
        raise TypeError(message) from e
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}.")
    return count
