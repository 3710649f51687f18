from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Same structure, shapes and dtypes, and values within `tolerance`.

    The unit of a leaf is its largest entry, or one. Integers, and the places of NaN and
    infinity, must be equal. NumPy arrays stand for tensors.
    """
    for path, x, y in _pairs(actual, expected):
        if not np.issubdtype(y.dtype, np.inexact):
            np.testing.assert_array_equal(x, y, err_msg=path)
            continue
        finite = np.abs(y[np.isfinite(y)])
        unit = max(1.0, float(finite.max())) if finite.size else 1.0
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * unit, err_msg=path)


def assert_identical(actual: Any, expected: Any) -> None:
    """Same structure, shapes and dtypes, and the same bits in every leaf."""
    for path, x, y in _pairs(actual, expected):
        if x.tobytes() != y.tobytes():
            np.testing.assert_array_equal(x, y, err_msg=path)
            raise AssertionError(f"{path}: equal numbers with other bits")


def _pairs(actual, expected):
    """The leaves of both with their paths, as NumPy arrays, after a look at types."""
    ours, structure = pytree.tree_flatten_with_path(actual)
    theirs, expected_structure = pytree.tree_flatten(expected)
    assert structure == expected_structure, (structure, expected_structure)
    for (path, x), y in zip(ours, theirs, strict=True):
        if x is None or y is None:
            # A leaf, to PyTorch's trees.
            assert x is y, path
            continue
        x, y = torch.as_tensor(x), torch.as_tensor(y)
        types = [(tuple(z.shape), z.dtype) for z in (x, y)]
        assert types[0] == types[1], types
        yield pytree.keystr(path), _as_numpy(x), _as_numpy(y)


def _as_numpy(x):
    x = x.detach().resolve_conj().cpu()
    # NumPy has no bfloat16, and every number of half precision is one of float32.
    return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()


class CallCounter:
    """`function`, and how many times it has been called."""

    def __init__(self, function: Callable):
        self.function = function
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


class _Peak(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        out = func(*args, **(kwargs or {}))
        for x in pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return out


def largest_bytes(function: Callable, *args: Any) -> int:
    """The memory of the largest tensor that `function` makes on its way."""
    with _Peak() as peak:
        function(*args)
    return peak.largest
