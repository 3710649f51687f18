from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Same structure, shapes and dtypes, and values within `tolerance`.

    The unit of a leaf is its largest entry, or one. Integers, keys, and the places of
    NaN and infinity must be equal.
    """
    _assert_same_types(actual, expected)
    for path, x, y in _pairs(actual, expected):
        if not np.issubdtype(y.dtype, np.inexact):
            np.testing.assert_array_equal(x, y, err_msg=path)
            continue
        finite = np.abs(y[np.isfinite(y)])
        unit = max(1.0, float(finite.max())) if finite.size else 1.0
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * unit, err_msg=path)


def assert_identical(actual: Any, expected: Any) -> None:
    """Same structure, shapes and dtypes, and the same bits in every leaf."""
    _assert_same_types(actual, expected)
    for path, x, y in _pairs(actual, expected):
        if x.tobytes() != y.tobytes():
            np.testing.assert_array_equal(x, y, err_msg=path)
            raise AssertionError(f"{path}: equal numbers with other bits")


def _assert_same_types(actual, expected):
    structures = jax.tree.structure(actual), jax.tree.structure(expected)
    assert structures[0] == structures[1], structures
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        types = [(jnp.shape(z), jnp.asarray(z).dtype) for z in (x, y)]
        assert types[0] == types[1], types


def _pairs(actual, expected):
    leaves = jax.tree_util.tree_leaves_with_path(actual)
    for (path, x), y in zip(leaves, jax.tree.leaves(expected), strict=True):
        x, y = map(_as_numpy, (x, y))
        yield jax.tree_util.keystr(path), x, y


def _as_numpy(x):
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype in (jnp.bfloat16, jnp.float16):
        x = x.astype(jnp.float32)
    return np.asarray(x)


class CallCounter:
    """`function`, and how many times Python has called it: once for every trace."""

    def __init__(self, function: Callable):
        self.function = function
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def temporary_bytes(function: Callable, *args: Any) -> int:
    """The scratch memory that the compiled `function` asks for. Nothing is run."""
    compiled = jax.jit(function).lower(*args).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise RuntimeError("this backend does not say what memory a program needs")
    return analysis.temp_size_in_bytes
