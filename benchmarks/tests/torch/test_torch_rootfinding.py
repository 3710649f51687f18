import sys
from importlib.util import find_spec

import numpy as np
import pytest


pytest.importorskip("torch")

import torch

from benchmarks.harness import Case, Contestant, Effort, measure
from benchmarks.tables import torch_rootfinding
from benchmarks.tables.torch_rootfinding import (
    forward,
    METHODS,
    parafix,
    Peer,
    TOLERANCE,
    torchdeq,
    with_gradient,
)
from benchmarks.torch_layers import Layer


needs_torchdeq = pytest.mark.skipif(
    find_spec("torchdeq") is None, reason="needs torchdeq"
)
LAYER = Layer(2, 5, 0.7, torch.float64)


def measured(build, reference, limit, name="deviation"):
    """What the harness makes of one contestant."""
    contestant = Contestant("contestant", build)
    case = Case("group", "case", [contestant], (), lambda: reference, limit, name)
    (item,) = measure(case, Effort(1, 0), lambda word: None)
    return item


def zeros(layer):
    return {"residual": np.zeros((layer.samples, layer.size))}


def by_torch(order):
    """The gradient through many plain steps, and its change."""
    weight, x, cotangent = (each.clone() for each in LAYER.tensors)
    parameters = [weight.requires_grad_(), x.requires_grad_()]
    z = LAYER.guess
    for _ in range(200):
        z = torch.tanh(z @ weight + x)
    found = torch.autograd.grad((z * cotangent).sum(), parameters, create_graph=True)
    if order == 2:
        found = torch.autograd.grad((found[1] * cotangent).sum(), parameters)
    return dict(zip(("weight", "x"), found, strict=True))


def test_references():
    z = torch.tensor(LAYER.solution)
    assert np.max(abs(LAYER.residual(z, 1e-12))) < 1
    z[1, 2] += 1e-3
    assert np.max(abs(LAYER.residual(z, 1e-12))) > 1e6
    for order, expected in ((1, LAYER.gradient), (2, LAYER.second())):
        for name, found in by_torch(order).items():
            np.testing.assert_allclose(found.detach(), expected[name], atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_parafix(method):
    layer = Layer(1, 5, 0.7)
    item = measured(
        lambda: forward(layer, parafix(method)), zeros(layer), 1.0, "residual"
    )
    assert item.problem is None
    assert item.facts["evaluations"] > 3
    assert item.facts["result"] == "successful"
    for order, reference in ((1, LAYER.gradient), (2, LAYER.second())):
        item = measured(
            lambda order=order: with_gradient(LAYER, parafix(method), order),
            reference,
            1e-3 if order == 1 else torch_rootfinding.SECOND,
        )
        assert item.problem is None


def test_who_cannot_is_wrong():
    peer = Peer("peer", lambda f, guess, tolerance, steps: (f(guess), None), False)
    item = measured(lambda: forward(LAYER, peer), zeros(LAYER), 1.0, "residual")
    assert item.problem is not None
    assert item.problem.startswith("wrong: residual")
    assert not item.times


def test_the_loosest_tolerance_that_does():
    for error in (1e-3, 1e-5):
        found = torch_rootfinding._loosest(lambda tolerance, e=error: tolerance / e)
        assert found <= error * 1.0001
        assert found > error / 10**0.26
    assert torch_rootfinding._loosest(lambda tolerance: np.inf) == 1e-2


def test_without_torchdeq(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdeq", None)
    torch_rootfinding._torchdeq_layer.cache_clear()
    item = measured(
        lambda: forward(LAYER, torchdeq("anderson")), zeros(LAYER), 1.0, "residual"
    )
    assert item.problem is not None
    assert "pip install torchdeq" in item.problem


@needs_torchdeq
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_torchdeq(method):
    layer = Layer(1, 5, 0.7)
    item = measured(
        lambda: forward(layer, torchdeq(method)), zeros(layer), 1.0, "residual"
    )
    assert item.problem is None
    assert item.facts["tolerance"] > TOLERANCE / 100
    item = measured(
        lambda: with_gradient(LAYER, torchdeq(method)), LAYER.gradient, 1e-3
    )
    assert item.problem is None
