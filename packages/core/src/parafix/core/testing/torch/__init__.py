"""Seeded problems, oracles, comparisons and contract suites for the PyTorch backend.

The oracles use nothing of the library under test: one that shares code with what it
judges judges nothing. The contracts are base classes for tests of an outside author;
they ask the public verbs and let the oracles judge.
"""

from ._adjoint_contract import AdjointContract as AdjointContract
from ._causal_contract import CausalContract as CausalContract
from ._causal_zoo import (
    causal_zoo as causal_zoo,
    causal_zoo_names as causal_zoo_names,
    CausalProblem as CausalProblem,
    one_by_one as one_by_one,
)
from ._compare import (
    assert_close as assert_close,
    assert_identical as assert_identical,
    CallCounter as CallCounter,
    largest_bytes as largest_bytes,
)
from ._dense_oracle import (
    affine as affine,
    affine_tree as affine_tree,
    dense_jacobian as dense_jacobian,
    dense_pullback as dense_pullback,
    dense_pushforward as dense_pushforward,
    dense_solution as dense_solution,
    tanh_layer as tanh_layer,
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
from ._rootfinder_contract import RootFinderContract as RootFinderContract
from ._scan_contract import ScanContract as ScanContract
from ._zoo import (
    DenseProblem as DenseProblem,
    stacked as stacked,
    zoo as zoo,
    zoo_names as zoo_names,
)


__all__ = [
    "AdjointContract",
    "CallCounter",
    "CausalContract",
    "CausalProblem",
    "DenseProblem",
    "Recurrence",
    "RootFinderContract",
    "ScanContract",
    "affine",
    "affine_tree",
    "assert_close",
    "assert_identical",
    "causal_zoo",
    "causal_zoo_names",
    "dense_affine_scan",
    "dense_jacobian",
    "dense_pullback",
    "dense_pushforward",
    "dense_solution",
    "directional_derivative",
    "gru",
    "largest_bytes",
    "logistic",
    "loop_affine_scan",
    "lstm",
    "one_by_one",
    "reference_scan",
    "stacked",
    "tanh_cell",
    "tanh_layer",
    "zoo",
    "zoo_names",
]
