import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from parafix.core.jax import RESULTS
from parafix.feedforward.jax import (
    AbstractFlowAdapter,
    invert,
    register_flow_adapter,
)


class Shift(eqx.Module):
    """`y = x + tanh(W x)`, with a `W` below the diagonal."""

    weights: Array

    def __init__(self, count):
        draw = np.random.default_rng(0)
        self.weights = jnp.tril(draw.standard_normal((count, count)), -1)

    def inverse(self, y):
        x = jnp.zeros_like(y)
        for _ in range(len(y)):
            x = y - jnp.tanh(self.weights @ x)
        return x


class Adapter(AbstractFlowAdapter):
    def __init__(self, offset=0.0):
        self.offset = offset

    def knows(self, transform):
        return isinstance(transform, Shift)

    def inverse(self, transform, y, context, solve):
        f = lambda z: y - jnp.tanh(transform.weights @ z)
        return solve(f, jnp.zeros_like(y)), jnp.asarray(self.offset)


@pytest.fixture
def register():
    undo = []
    yield lambda adapter: undo.append(register_flow_adapter(adapter))
    for function in undo:
        function()


Y = jnp.linspace(-2.0, 2.0, 8)


def test_unknown_type():
    with pytest.raises(TypeError, match=r"test_invert\.Shift") as raised:
        invert(Shift(8), Y)
    for cure in ("flowjax", "register_flow_adapter", "solve_causal(f, "):
        assert cure in str(raised.value)


def test_a_registered_adapter(register):
    register(Adapter())
    shift = Shift(8)
    x, log_abs_det, solution = invert(shift, Y)
    np.testing.assert_allclose(x, shift.inverse(Y), rtol=1e-13)
    assert log_abs_det == 0
    assert solution.result == RESULTS.successful


def test_the_last_registered_is_asked_first_until_it_is_taken_away(register):
    register(Adapter())
    undo = register_flow_adapter(Adapter(1.0))
    assert invert(Shift(8), Y)[1] == 1
    undo()
    undo()
    assert invert(Shift(8), Y)[1] == 0


def test_no_adapter():
    with pytest.raises(TypeError, match="AbstractFlowAdapter"):
        register_flow_adapter(Shift)  # pyright: ignore[reportArgumentType]
