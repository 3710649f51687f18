import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parafix.core.jax import (
    assess,
    Chain,
    checked_count,
    checked_tolerance,
    default_tolerance,
    RESULTS,
    Solution,
    solve_chain,
)


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
        for code, name in enumerate(NAMES):
            assert int(getattr(RESULTS, name)._value) == code

    def test_a_failure_names_cause_and_remedy(self):
        sentences = [RESULTS[getattr(RESULTS, name)] for name in NAMES[1:]]
        assert len(set(sentences)) == len(sentences)
        for text in sentences:
            # A cause, and then a remedy.
            assert text.count(". ") >= 1
            assert text.endswith(".")

    def test_members_are_compared_by_equality_traced_or_not(self):
        assert RESULTS.nonfinite == RESULTS.nonfinite
        assert RESULTS.nonfinite != RESULTS.successful
        chosen = jax.jit(
            lambda bad: RESULTS.where(bad, RESULTS.nonfinite, RESULTS.successful)
        )
        assert chosen(True) == RESULTS.nonfinite
        assert chosen(False) == RESULTS.successful


def solution_of(result, position=3, leaf=1):
    return Solution(
        value=jnp.zeros(2),
        result=result,
        stats={},
        position=jnp.array(position),
        leaf=jnp.array(leaf),
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
        solution = Solution(
            value=None, result=RESULTS.stalled, stats={}, position=jnp.array(2)
        )
        assert solution.message().endswith("First bad position: 2.")

    def test_of_a_batch_says_how_to_take_one_sample(self):
        problem = Chain(lambda z, x: 0.5 * z, jnp.ones(1), None, 3)
        batch = jax.vmap(
            lambda init: solve_chain(eqx.tree_at(lambda p: p.init, problem, init))
        )(jnp.ones((2, 1)))
        with pytest.raises(ValueError, match="one sample"):
            batch.message()
        assert jax.tree.map(lambda x: x[0], batch).message() == ""

    def test_of_a_batch_of_one_too(self):
        problem = Chain(lambda z, x: jnp.log(z), jnp.full(1, 0.5), None, 3)
        batch = jax.vmap(
            lambda init: solve_chain(
                eqx.tree_at(lambda p: p.init, problem, init), throw=False
            )
        )(jnp.full((1, 1), 0.5))
        message = jax.tree.map(lambda x: x[0], batch).message()
        assert message.endswith("First bad position: 1.")


class TestAssess:
    def test_right_states_are_right(self):
        problem = Chain(lambda z, x: 0.5 * z + x, jnp.zeros(1), jnp.ones((4, 1)), 4)
        z = jnp.array([[1], [1.5], [1.75], [1.875]])
        solution = assess(problem, z)
        assert solution.result == RESULTS.successful
        assert solution.stats["residual"] == 0
        assert solution.stats["converged_prefix"] == 4

    def test_residuals_are_in_units_of_the_tolerance(self):
        problem = Chain(lambda z, x: 0.5 * z, jnp.ones(1), None, 2)
        z = jnp.array([[0.5], [0.26]])
        solution = assess(problem, z, rtol=0.0, atol=1e-3)
        np.testing.assert_allclose(solution.stats["residual"], 10, rtol=1e-12)


class TestNumbers:
    def test_default_tolerances(self):
        for dtype, value in (
            (jnp.float64, 1.8e-12),
            (jnp.float32, 6.4e-6),
            (jnp.float16, 5.5e-3),
            (jnp.bfloat16, 2.6e-2),
        ):
            assert default_tolerance(dtype) == pytest.approx(value, rel=0.05)
        assert checked_tolerance("rtol", None, 0.25) == 0.25

    @pytest.mark.parametrize("value", [0, 1, np.float32(0.5), jnp.array(0.25), 1e300])
    def test_tolerances_that_are_taken(self, value):
        assert checked_tolerance("rtol", value, None) == float(value)

    def test_one_for_each_entry(self):
        value = jnp.array([0.25, 0.5])
        assert checked_tolerance("rtol", value, None) is value
        with pytest.raises(ValueError, match="`rtol` must be non-negative"):
            checked_tolerance("rtol", -value, None)

    @pytest.mark.parametrize("value", [-1, -1e-300, np.nan, -np.inf, jnp.array(-1.0)])
    def test_tolerances_out_of_range(self, value):
        with pytest.raises(ValueError, match="`atol` must be non-negative"):
            checked_tolerance("atol", value, None)

    @pytest.mark.parametrize("value", ["small", {}, 1j, object()])
    def test_tolerances_that_are_no_numbers(self, value):
        with pytest.raises(TypeError, match="`atol` must be a number"):
            checked_tolerance("atol", value, None)

    @pytest.mark.parametrize("value", [1, 7, np.int32(3), np.uint8(3), jnp.array(3)])
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

    @pytest.mark.parametrize("value", [2.5, 2.0, "2", True, [2], jnp.ones(2, int)])
    def test_counts_that_are_no_integers(self, value):
        with pytest.raises(TypeError, match="`window` must be an integer"):
            checked_count("window", value)
