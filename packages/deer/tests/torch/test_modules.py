"""RNN, GRU and LSTM against those of `torch.nn`: every option, values and gradients."""

import copy

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, PackedSequence

from parafix.core.testing.torch import assert_close, directional_derivative
from parafix.deer.torch import GRU, LSTM, RNN


KINDS = {
    "tanh": (RNN, nn.RNN, {"nonlinearity": "tanh"}),
    "relu": (RNN, nn.RNN, {"nonlinearity": "relu"}),
    "gru": (GRU, nn.GRU, {}),
    "lstm": (LSTM, nn.LSTM, {}),
    "projected": (LSTM, nn.LSTM, {"proj_size": 2}),
}
LAYOUTS = ["batched", "single", "sorted", "unsorted"]
INPUTS, HIDDEN = 2, 3
PAIR = {"solver": "deer", "rtol": 1e-12, "atol": 1e-12}


def modules(kind, solver=PAIR, **options):
    """Ours and that of `torch.nn`, with the same weights, in float64."""
    ours, theirs, fixed = KINDS[kind]
    options = {"dtype": torch.float64, **fixed, **options}
    theirs = theirs(INPUTS, HIDDEN, **options)
    ours = ours(INPUTS, HIDDEN, **options, **solver)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def arguments(module, layout="batched", length=7, batch=3, states=True):
    """Inputs, and initial states if wanted, in a layout."""
    shape = [length, batch, INPUTS]
    if module.batch_first:
        shape = [batch, length, INPUTS]
    if layout == "single":
        shape = [length, INPUTS]
    inputs = torch.randn(shape, dtype=torch.float64)
    if layout in ("sorted", "unsorted"):
        lengths = torch.randint(1, length + 1, (batch,))
        lengths[-1] = length
        if layout == "sorted":
            lengths = lengths.sort(descending=True).values
        inputs = pack_padded_sequence(
            inputs, lengths, module.batch_first, enforce_sorted=layout == "sorted"
        )
    if not states:
        return inputs, None
    sizes = [module.proj_size or HIDDEN]
    if module.mode == "LSTM":
        sizes.append(HIDDEN)
    count = len(module.all_weights)
    middle = [] if layout == "single" else [batch]
    hx = tuple(torch.randn(count, *middle, n, dtype=torch.float64) for n in sizes)
    return inputs, hx if len(hx) > 1 else hx[0]


def tensors_of(tree):
    if isinstance(tree, PackedSequence):
        return [tree.data]
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [x for part in tree if part is not None for x in tensors_of(part)]


def values_and_gradients(module, inputs, hx, seed=0):
    """What comes out, and the gradients of a loss of everything in everything."""
    data = tensors_of((inputs, hx))
    for x in data:
        x.requires_grad_()
        x.grad = None
    torch.manual_seed(seed)
    out = module(inputs, hx)
    outputs = tensors_of(out)
    draw = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(x.shape, generator=draw, dtype=torch.float64) for x in outputs
    ]
    loss = sum(
        (w * x + (w * x) ** 2).sum() for w, x in zip(weights, outputs, strict=True)
    )
    wanted = [*data, *module.parameters()]
    gradients = torch.autograd.grad(loss, wanted)
    return [x.detach() for x in outputs], list(gradients)


def assert_same(ours, theirs, inputs, hx, tolerance=1e-9):
    found = values_and_gradients(ours, inputs, hx)
    expected = values_and_gradients(theirs, inputs, hx)
    assert all(item.solver == "deer" and item.successful for item in ours.info)
    assert len(ours.info) == len(ours.all_weights)
    assert_close(found, expected, tolerance)
    # Both sides agree on what kind of thing is returned, too.
    mine, other = ours(inputs, hx), theirs(inputs, hx)
    assert type(mine[0]) is type(other[0])
    assert type(mine[1]) is type(other[1])
    if isinstance(inputs, PackedSequence):
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            assert_close(getattr(mine[0], name), getattr(other[0], name))


OPTIONS = {
    "plain": {},
    "layers": {"num_layers": 3},
    "both directions": {"bidirectional": True},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "dropout": {"num_layers": 3, "dropout": 0.4},
    "all": {
        "num_layers": 2,
        "bidirectional": True,
        "batch_first": True,
        "bias": False,
        "dropout": 0.4,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_every_option(kind, options, layout):
    torch.manual_seed(0)
    ours, theirs = modules(kind, **options)
    for states in (True, False):
        assert_same(ours, theirs, *arguments(ours, layout, states=states))


@given(
    kind=st.sampled_from(sorted(KINDS)),
    layout=st.sampled_from(LAYOUTS),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    dropout=st.sampled_from([0.0, 0.3]),
    training=st.booleans(),
    states=st.booleans(),
    length=st.integers(1, 30),
    batch=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_combinations(
    kind,
    layout,
    layers,
    bidirectional,
    batch_first,
    bias,
    dropout,
    training,
    states,
    length,
    batch,
    seed,
):
    torch.manual_seed(seed)
    ours, theirs = modules(
        kind,
        num_layers=layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        bias=bias,
        dropout=dropout if layers > 1 else 0.0,
    )
    ours.train(training)
    theirs.train(training)
    assert_same(ours, theirs, *arguments(ours, layout, length, batch, states))


@pytest.mark.parametrize("kind", KINDS)
def test_long_sequences(kind):
    torch.manual_seed(0)
    ours, theirs = modules(kind)
    assert_same(ours, theirs, *arguments(ours, length=500, batch=2))


@pytest.mark.parametrize("window", [1, 4, 100])
def test_windows(window):
    torch.manual_seed(0)
    ours, theirs = modules("gru", {**PAIR, "window": window}, bidirectional=True)
    assert_same(ours, theirs, *arguments(ours, "unsorted", length=11))


def test_another_solver():
    torch.manual_seed(0)
    ours, theirs = modules("lstm", {**PAIR, "solver": "jacobi"})
    inputs, hx = arguments(ours)
    found = values_and_gradients(ours, inputs, hx)
    assert_close(found, values_and_gradients(theirs, inputs, hx), 1e-9)
    assert ours.info[0].solver == "jacobi"


def test_without_training_nothing_is_dropped():
    torch.manual_seed(0)
    ours, theirs = modules("gru", num_layers=2, dropout=0.5)
    inputs, hx = arguments(ours)
    ours.eval()
    theirs.eval()
    assert_same(ours, theirs, inputs, hx)
    without = copy.deepcopy(ours).train()
    without.dropout = 0.0
    assert_close(ours(inputs, hx), without(inputs, hx), 1e-14)


@pytest.mark.parametrize("kind", ["tanh", "gru", "lstm", "projected"])
@pytest.mark.parametrize("layout", ["batched", "unsorted"])
def test_second_derivatives(kind, layout):
    """Along a line through inputs, initial states and weights, by differences."""
    torch.manual_seed(0)
    ours, _ = modules(kind, num_layers=2, bidirectional=True)
    inputs, hx = arguments(ours, layout, length=5, batch=2)
    names = [name for name, _ in ours.named_parameters()]
    point = [*tensors_of((inputs, hx)), *(p.detach() for p in ours.parameters())]
    along = [torch.randn_like(x) for x in point]

    def gradient(point, create_graph=False):
        data, *rest = [x.detach().requires_grad_() for x in point]
        leaves = [data, *rest]
        states = rest[: len(rest) - len(names)]
        given = data
        if isinstance(inputs, PackedSequence):
            given = PackedSequence(data, *inputs[1:])
        start = tuple(states) if len(states) > 1 else states[0]
        weights = dict(zip(names, rest[len(states) :], strict=True))
        out = torch.func.functional_call(ours, weights, (given, start))
        loss = sum((x**3).sum() for x in tensors_of(out))
        found = torch.autograd.grad(loss, leaves, create_graph=create_graph)
        return leaves, found

    leaves, first = gradient(point, create_graph=True)
    value = sum((g * v).sum() for g, v in zip(first, along, strict=True))
    second = list(torch.autograd.grad(value, leaves))
    expected = directional_derivative(
        lambda point: [x.detach() for x in gradient(point)[1]], point, along, 1e-3
    )
    assert_close(second, expected, 1e-7)
