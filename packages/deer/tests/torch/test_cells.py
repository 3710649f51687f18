"""The formulas of the cells, against automatic differentiation and `torch.nn`."""

import pytest
import torch
from torch import nn

from parafix.core.testing.torch import assert_close, directional_derivative
from parafix.deer.torch._cells import ElmanCell, GRUCell, LSTMCell, Weights


LEAD = (3, 2)
INPUTS, HIDDEN = 2, 3


def weights_of(layer):
    return Weights.of(layer.all_weights[0], layer.bias)


def make_tanh(bias):
    layer = nn.RNN(INPUTS, HIDDEN, bias=bias)
    return layer, ElmanCell(weights_of(layer), "tanh")


def make_relu(bias):
    layer = nn.RNN(INPUTS, HIDDEN, bias=bias, nonlinearity="relu")
    return layer, ElmanCell(weights_of(layer), "relu")


def make_gru(bias):
    layer = nn.GRU(INPUTS, HIDDEN, bias=bias)
    return layer, GRUCell(weights_of(layer))


def make_lstm(bias):
    layer = nn.LSTM(INPUTS, HIDDEN, bias=bias)
    return layer, LSTMCell(weights_of(layer))


def make_projected(bias):
    layer = nn.LSTM(INPUTS, HIDDEN, bias=bias, proj_size=2)
    return layer, LSTMCell(weights_of(layer))


MAKERS = [make_tanh, make_relu, make_gru, make_lstm, make_projected]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__[5:])
def make(request):
    def seeded(bias=True):
        torch.manual_seed(0)
        with torch.device("cpu"):
            torch.set_default_dtype(torch.float64)
            try:
                return request.param(bias)
            finally:
                torch.set_default_dtype(torch.float32)

    return seeded


def arguments(cell):
    size = sum(cell.sizes.values())
    z = torch.randn(*LEAD, size, dtype=torch.float64)
    x = torch.randn(*LEAD, INPUTS, dtype=torch.float64)
    return z, x


@pytest.mark.parametrize("bias", [True, False])
def test_a_step_is_that_of_torch(make, bias):
    layer, cell = make(bias)
    z, x = arguments(cell)
    found = cell.step(z, cell.gates(x))
    rows = z.reshape(1, -1, z.shape[-1]).split([*cell.sizes.values()], -1)
    start = rows if len(rows) == 2 else rows[0]
    _, end = layer(x.reshape(1, -1, INPUTS), start)
    expected = torch.cat(end, -1) if isinstance(end, tuple) else end
    assert_close(found, expected.reshape(z.shape), 1e-14)


def test_one_time_and_all_times_are_one_formula(make):
    _, cell = make()
    z, x = arguments(cell)
    x = cell.gates(x)
    together = cell.linearised(z, x)
    one_by_one = [cell.linearised(z[t], x[t]) for t in range(len(z))]
    assert_close(
        together, tuple(map(torch.stack, zip(*one_by_one, strict=True))), 1e-14
    )


@pytest.mark.parametrize("bias", [True, False])
def test_the_blocks_are_those_of_automatic_differentiation(make, bias):
    _, cell = make(bias)
    z, x = arguments(cell)
    x = cell.gates(x)
    f, blocks = cell.linearised(z, x)
    jacobian = torch.func.jacrev(cell.step)
    expected = torch.func.vmap(torch.func.vmap(jacobian))(z, x)
    assert_close(f, cell.step(z, x), 1e-15)
    assert_close(blocks, expected, 1e-14)


def test_the_blocks_are_differentiable(make):
    # Their gradients, in the states, the inputs and every weight, are those of a
    # Jacobian taken by autograd.
    layer, cell = make()
    z, x = arguments(cell)
    z.requires_grad_()
    x.requires_grad_()
    weight = torch.randn(*z.shape, z.shape[-1], dtype=torch.float64)

    def by_formula():
        return cell.linearised(z, cell.gates(x))[1]

    def by_autograd():
        f = cell.step(z, cell.gates(x))
        rows = [
            torch.autograd.grad(f[..., i].sum(), z, create_graph=True)[0]
            for i in range(z.shape[-1])
        ]
        return torch.stack(rows, -2)

    wanted = [z, x, *layer.parameters()]
    ours, theirs = (
        torch.autograd.grad(
            (weight * blocks()).square().sum() + blocks().sum(),
            wanted,
            allow_unused=True,
            materialize_grads=True,
        )
        for blocks in (by_formula, by_autograd)
    )
    assert_close(ours, theirs, 1e-12)


def test_the_blocks_are_twice_differentiable(make):
    # By differences of the blocks' gradient, which knows nothing of the formula.
    _, cell = make()
    z, x = arguments(cell)
    x = cell.gates(x)
    generator = torch.Generator().manual_seed(1)
    draw = lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype)
    weight, along = draw(z.unsqueeze(-1).expand(*z.shape, z.shape[-1])), draw(z)

    def first(z):
        z = z.detach().requires_grad_()
        return z, derivative((weight * cell.linearised(z, x)[1]).sum(), z)

    point, gradient = first(z)
    found = derivative((gradient * along).sum(), point)
    # The Hessian is symmetric; between kinks, the blocks of a rectifier are constant.
    expected = directional_derivative(lambda z: first(z)[1].detach(), z, along)
    assert_close(found, expected, 1e-8)
    constant = isinstance(cell, ElmanCell) and cell.nonlinearity == "relu"
    assert bool(found.any()) is not constant


def derivative(value, at):
    options = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
    return torch.autograd.grad(value, at, **options)[0]
