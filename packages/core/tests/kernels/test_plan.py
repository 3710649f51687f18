import numpy as np
from hypothesis import given, settings, strategies as st

from parafix.core.kernels import (
    DiagonalScanPlan,
    LaneLayout,
    reasons_against_diagonal_scan,
    reasons_against_libraries,
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=4), st.integers(1, 3)
)
def test_lanes_find_their_factors(axes, size):
    batch = [axis for axis, _ in axes]
    a_batch = [1 if shared else axis for axis, shared in axes]
    a = np.arange(np.prod([*a_batch, size], dtype=int)).reshape(1, *a_batch, size)
    layout = LaneLayout.of(a.shape, (1, *batch, size))
    numbers = np.broadcast_to(a, (1, *layout.batch, size)).ravel()
    assert len(numbers) == layout.lanes
    lane = np.arange(np.prod([*batch, size], dtype=int))
    at = lane // (layout.shared * layout.inner) * layout.inner + lane % layout.inner
    expected = np.broadcast_to(a, (1, *batch, size)).ravel()
    np.testing.assert_array_equal(numbers[at], expected)
    runs = "".join(
        "s" if i == 1 != j else "k"
        for i, j in zip(a_batch, batch, strict=True)
        if j > 1
    )
    if runs.strip("k").strip("s") == "" or set(runs.strip("k")) <= {"s"}:
        # One run of shared axes: nothing is written out.
        assert layout.lanes == a.size


def test_many_lanes_are_walked_and_few_are_chained():
    plan = lambda *sizes: DiagonalScanPlan.of(*sizes, is_complex=False)
    # Under the interpreter everything is small.
    assert not plan(65536, 12288).chained
    assert plan(1048576, 8).chained
    chained = DiagonalScanPlan(True, 256, 32, 32, 8, 1)
    assert chained.programs(1000, 100) == 4 * 4
    assert chained.words(1000, 100, is_complex=False) == 2 + 2 * (4 + 2) * 100 * 2


def test_reasons():
    assert reasons_against_diagonal_scan(2, (5, 3), "float32") == []
    reasons = reasons_against_diagonal_scan(3, (2**30, 3), "float64")
    assert len(reasons) == 3
    assert reasons_against_libraries("triton") == []
