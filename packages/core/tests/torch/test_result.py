import numpy as np
import pytest
import torch

from parafix.core.torch import (
    checked_count,
    checked_tolerance,
    default_tolerance,
    RESULTS,
    Solution,
)
from parafix.core.torch._result import raise_if


NAMES = (
    "successful",
    "max_steps_reached",
    "nonfinite",
    "diverged",
    "stalled",
    "ill_conditioned",
    "not_causal",
    "linear_solve_failed",
)


class TestResults:
    def test_codes_do_not_change(self):
        # The other backend has the same ones, and users store them.
        assert tuple(RESULTS.__members__) == NAMES
        for code, name in enumerate(NAMES):
            assert int(getattr(RESULTS, name)) == code
            assert RESULTS(code) is RESULTS[name]

    def test_a_failure_names_cause_and_remedy(self):
        sentences = [RESULTS[getattr(RESULTS, name)] for name in NAMES[1:]]
        assert len(set(sentences)) == len(sentences)
        for text in sentences:
            # A cause, and then a remedy.
            assert text.count(". ") >= 1
            assert text.endswith(".")

    def test_members_are_compared_to_codes(self):
        codes = torch.tensor([0, 2, 2])
        for dtype in (torch.int64, torch.int32, torch.uint8):
            found = codes.to(dtype) == RESULTS.nonfinite
            assert found.tolist() == [False, True, True]
        assert (codes != RESULTS.successful).tolist() == [False, True, True]
        assert RESULTS.nonfinite == RESULTS.nonfinite
        assert RESULTS.nonfinite != RESULTS.successful

    def test_members_are_chosen_by_where(self):
        bad = torch.tensor([True, False])
        codes = torch.where(bad, RESULTS.nonfinite, RESULTS.successful)
        assert codes.dtype == torch.int64
        assert codes.tolist() == [2, 0]

    def test_a_code_in_a_tensor_has_a_sentence(self):
        codes = torch.tensor([0, 4])
        assert RESULTS[codes[1]] == RESULTS[RESULTS.stalled]


def solution_of(*codes, position=(3,), leaf=(1,)):
    return Solution(
        value=torch.zeros(2),
        result=torch.tensor(codes),
        stats={},
        position=torch.tensor(position),
        leaf=torch.tensor(leaf),
        leaves=("carry['c']", "carry['h']"),
    )


class TestMessages:
    def test_of_a_success_is_empty(self):
        assert solution_of(RESULTS.successful).message() == ""

    def test_of_a_failure_ends_with_the_place(self):
        message = solution_of(RESULTS.nonfinite).message()
        assert message.startswith(RESULTS[RESULTS.nonfinite])
        assert message.endswith("First bad position: 3, leaf carry['h'].")

    def test_without_leaves_names_the_position_alone(self):
        solution = Solution(None, torch.tensor(RESULTS.stalled), {}, torch.tensor(2))
        assert solution.message().endswith("First bad position: 2.")

    def test_without_a_position_is_the_sentence(self):
        solution = Solution(None, torch.tensor(RESULTS.stalled), {})
        assert solution.message() == RESULTS[RESULTS.stalled]

    def test_of_a_batch_says_how_to_take_one_sample(self):
        batch = solution_of(0, 4, position=(0, 7), leaf=(0, 1))
        with pytest.raises(ValueError, match=r"one sample.*message\(i\)"):
            batch.message()
        assert batch.message(0) == ""
        assert batch.message(1).endswith("First bad position: 7, leaf carry['h'].")

    def test_of_a_batch_of_one(self):
        assert solution_of(4).message() == solution_of(4).message(0)


class TestRaising:
    def test_a_success_passes(self):
        raise_if(torch.tensor(0))
        raise_if(torch.zeros(3, dtype=torch.int64))
        raise_if(torch.zeros(0, dtype=torch.int64))

    def test_one_problem_gives_its_sentence(self):
        with pytest.raises(RuntimeError) as caught:
            raise_if(torch.tensor(RESULTS.diverged))
        assert str(caught.value) == RESULTS[RESULTS.diverged]

    def test_a_batch_says_which_sample(self):
        with pytest.raises(
            RuntimeError, match="2 of 4 samples failed; sample 1: "
        ) as e:
            raise_if(torch.tensor([0, 3, 0, 2]))
        assert str(e.value).endswith(RESULTS[RESULTS.diverged])


class TestNumbers:
    def test_default_tolerances(self):
        for dtype, value in (
            (torch.float64, 1.8e-12),
            (torch.float32, 6.4e-6),
            (torch.float16, 5.5e-3),
            (torch.bfloat16, 2.6e-2),
        ):
            assert default_tolerance(dtype) == pytest.approx(value, rel=0.05)
        assert checked_tolerance("rtol", None, 0.25) == 0.25

    @pytest.mark.parametrize(
        "value", [0, 1, np.float32(0.5), torch.tensor(0.25), 1e300]
    )
    def test_tolerances_that_are_taken(self, value):
        assert checked_tolerance("rtol", value, None) == float(value)

    def test_one_for_each_entry(self):
        value = torch.tensor([0.25, 0.5])
        assert checked_tolerance("rtol", value, None) is value
        with pytest.raises(ValueError, match="`rtol` must be non-negative"):
            checked_tolerance("rtol", -value, None)

    @pytest.mark.parametrize("value", [-1, -1e-300, np.nan, -np.inf, torch.tensor(-1)])
    def test_tolerances_out_of_range(self, value):
        with pytest.raises(ValueError, match="`atol` must be non-negative"):
            checked_tolerance("atol", value, None)

    @pytest.mark.parametrize(
        "value", ["small", {}, 1j, object(), torch.tensor(1j), np.array(1j)]
    )
    def test_tolerances_that_are_no_numbers(self, value):
        with pytest.raises(TypeError, match="`atol` must be a number"):
            checked_tolerance("atol", value, None)

    @pytest.mark.parametrize("value", [1, 7, np.int32(3), np.uint8(3), torch.tensor(3)])
    def test_counts_that_are_taken(self, value):
        count = checked_count("window", value)
        assert count == int(value)
        assert type(count) is int

    def test_no_count(self):
        assert checked_count("window", None) is None

    @pytest.mark.parametrize("value", [0, -1, np.int64(-7)])
    def test_counts_out_of_range(self, value):
        with pytest.raises(ValueError, match="`window` must be at least 1"):
            checked_count("window", value)

    @pytest.mark.parametrize(
        "value",
        [2.5, 2.0, "2", True, [2], torch.ones(2, dtype=int), torch.tensor(True)],
    )
    def test_counts_that_are_no_integers(self, value):
        with pytest.raises(TypeError, match="`window` must be an integer"):
            checked_count("window", value)
