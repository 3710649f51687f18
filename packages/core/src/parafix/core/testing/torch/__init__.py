"""Oracles, comparisons and contract suites for the PyTorch backend.

The oracles use nothing of the library under test: one that shares code with what it
judges judges nothing. The contracts are base classes for tests of an outside author;
they ask the public verbs and let the oracles judge.
"""

from ._compare import (
    assert_close as assert_close,
    assert_identical as assert_identical,
    CallCounter as CallCounter,
    largest_bytes as largest_bytes,
)
from ._oracle import (
    dense_affine_scan as dense_affine_scan,
    directional_derivative as directional_derivative,
    loop_affine_scan as loop_affine_scan,
    reference_scan as reference_scan,
)
from ._recurrence import (
    gru as gru,
    logistic as logistic,
    lstm as lstm,
    Recurrence as Recurrence,
    tanh_cell as tanh_cell,
)
from ._scan_contract import ScanContract as ScanContract


__all__ = [
    "CallCounter",
    "Recurrence",
    "ScanContract",
    "assert_close",
    "assert_identical",
    "dense_affine_scan",
    "directional_derivative",
    "gru",
    "largest_bytes",
    "logistic",
    "loop_affine_scan",
    "lstm",
    "reference_scan",
    "tanh_cell",
]
