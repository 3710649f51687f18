import pytest
import torch

from parafix.core.torch import RESULTS
from parafix.feedforward.torch import (
    AbstractFlowAdapter,
    invert,
    register_flow_adapter,
)


class Shift:
    """`y = x + tanh(W x)`, where `W` goes from the last entry to the first."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(count, count, generator=generator, dtype=torch.float64)
        self.weights = weights.triu(1)

    def inverse(self, y):
        x = torch.zeros_like(y)
        for _ in range(y.shape[1]):
            x = y - torch.tanh(x @ self.weights.T)
        return x


class Adapter(AbstractFlowAdapter):
    def __init__(self, *, backwards=True, shape=lambda y: y.shape[:1]):
        self.backwards = backwards
        self.shape = shape

    def knows(self, transform):
        return isinstance(transform, Shift)

    def inverse(self, transform, y, context, solve):
        order = torch.arange(y.shape[1]).flip(0) if self.backwards else None
        f = lambda z: y - torch.tanh(z @ transform.weights.T)
        x = solve(f, torch.zeros_like(y), order=order)
        return x, y.new_zeros(self.shape(y))


@pytest.fixture
def register():
    undo = []
    yield lambda adapter: undo.append(register_flow_adapter(adapter))
    for function in undo:
        function()


Y = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(3, 8)


def test_unknown_type():
    with pytest.raises(TypeError, match=r"test_invert\.Shift") as raised:
        invert(Shift(8), Y)
    for cure in ("nflows", "zuko", "register_flow_adapter", "solve_causal(f, "):
        assert cure in str(raised.value)


def test_a_registered_adapter(register):
    register(Adapter())
    shift = Shift(8)
    x, log_abs_det, solution = invert(shift, Y)
    assert torch.equal(x, shift.inverse(Y))
    assert log_abs_det.tolist() == [0.0] * 3
    assert solution.result.tolist() == [RESULTS.successful] * 3


def test_the_last_registered_is_asked_first_until_it_is_taken_away(register):
    register(Adapter())
    undo = register_flow_adapter(Adapter(backwards=False))
    with pytest.raises(RuntimeError, match="depend on themselves or on later ones"):
        invert(Shift(8), Y)
    undo()
    undo()
    invert(Shift(8), Y)


def test_no_adapter():
    with pytest.raises(TypeError, match="AbstractFlowAdapter"):
        register_flow_adapter(Shift)  # pyright: ignore[reportArgumentType]


def test_one_logarithm_for_each_sample(register):
    register(Adapter(shape=lambda y: y.shape))
    with pytest.raises(ValueError, match="one number for each sample"):
        invert(Shift(8), Y)
