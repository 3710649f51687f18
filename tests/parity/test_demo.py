"""`parafix demo deer`: one network, one story, in both frameworks."""

import numpy as np
import pytest

import parafix.deer.jax._demo as in_jax
import parafix.deer.torch._demo as in_torch
from parafix.deer._demo_data import batch_of, Recording
from parafix.deer._demo_network import network


LENGTH = 60


def story(module, cell):
    values = np.sin(np.arange(LENGTH) / 4)[None, :, None]
    batch = batch_of(Recording(values, ""), 3, LENGTH)
    ignore = lambda what: None
    with module.computation(
        network(cell, 3, 2, 1, 1),
        batch.inputs,
        dtype="float64",
        tolerance=None,
        window=None,
        repeats=1,
    ) as demo:
        forward, gradient = demo.forward(ignore), demo.gradient(ignore)
        return demo.tolerance, forward, gradient, demo.sweeps(99, ignore)


def test_the_same_story():
    # The gates of an LSTM have another order in `torch.nn`.
    expected, found = (story(module, "lstm") for module in (in_jax, in_torch))
    assert found[0] == expected[0]
    for ours, theirs in zip(expected[1:3], found[1:3], strict=True):
        assert ours.agrees
        assert theirs.agrees
        # Of the gradient: the smallest and the largest entry.
        np.testing.assert_allclose(theirs.outputs, ours.outputs, rtol=1e-10)
        assert theirs.sweeps == ours.sweeps
        assert theirs.prefix == ours.prefix == LENGTH
    np.testing.assert_allclose(found[3].errors, expected[3].errors, atol=1e-10)
    assert found[3].scale == pytest.approx(expected[3].scale, rel=1e-12)
    for ours, theirs in zip(expected[3].sweeps, found[3].sweeps, strict=True):
        assert theirs.certified == ours.certified
        assert theirs.prefix == ours.prefix
