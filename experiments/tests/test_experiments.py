"""The pieces that compute, against something else that does."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.gru import FORWARD, GRADIENT
from experiments.deer_classifier import data
from experiments.deer_classifier.training import (
    Batch,
    Classifier,
    CONTESTANTS,
    start,
    training_step,
)
from experiments.deer_difference.experiment import _profile
from experiments.deer_lyapunov.experiment import _ends
from experiments.deer_speed.cell import Cell, GIB
from experiments.deer_speed.config import Config
from experiments.deer_speed.experiment import _measured, _too_long, DEER


@pytest.mark.parametrize("group", [FORWARD, GRADIENT])
def test_a_cell_is_measured_or_says_why_not(group):
    cell = Cell(group, 2, 40, 2, GIB)
    row = _measured(cell, 40, 2, 1, cell.reason, 1)
    assert row["reference"] == "float64"
    assert [item["problem"] for item in row["contestants"]] == [None] * 3
    assert [ratio["denominator"] for ratio in row["ratios"]] == ["deer", "auto"]
    # DEER needs more than the loop does: between the two it alone is left out.
    cell.limit = cell._compiled(DEER).bytes_needed - 1
    row = _measured(cell, 40, 2, 0, "", 1)
    problems = {item["name"]: item["problem"] for item in row["contestants"]}
    assert problems["lax.scan"] is None
    assert problems["deer"].startswith("not measured: needs ")


def test_a_cell_without_memory():
    cell = Cell(FORWARD, 2, 40, 2, 100)
    assert cell.reason.startswith("needs ")
    row = _measured(cell, 40, 2, 0, cell.reason, 1)
    assert {item["problem"] for item in row["contestants"]} == {
        f"not measured: {cell.reason}"
    }
    assert row["ratios"] == []


def test_time_is_foreseen():
    config = Config(1, (1,), (10, 100), 2, 4, 60.0)
    assert _too_long(None, 100, config) == ""
    # 10 rounds of 2 draws, 10 times as long: 200 rounds of what one took.
    assert _too_long((10, 0.29), 100, config) == ""
    assert _too_long((10, 0.31), 100, config) == "would take 62 s"
    assert _too_long((10, 1.2), 100, config) == "would take 4 min"


def test_profile():
    expected = np.zeros((10, 2))
    found = expected.copy()
    found[3, 1], found[8, 0] = -2.0, 1.0
    profile = _profile(found, expected, 5)
    assert profile["starts"] == [0, 2, 4, 6, 8]
    assert profile["difference"] == [0, 2, 0, 0, 1]
    assert (profile["largest"], profile["median"]) == (2, 0)


def test_ends():
    draw = np.random.default_rng(0)
    matrix, starts = draw.standard_normal((3, 3)), draw.standard_normal((2, 3))
    xs = draw.standard_normal((7, 3))
    for z, end in zip(starts, np.asarray(_ends(matrix, xs, starts)), strict=True):
        for x in xs:
            z = np.tanh(matrix @ z + x)
        np.testing.assert_allclose(end, z, rtol=1e-4, atol=1e-5)


def test_all_train_alike():
    draw = np.random.default_rng(0)
    count, length, hidden = 4, 30, 3
    xs = draw.standard_normal((count, length, data.CHANNELS)).astype(np.float32)
    lengths = np.array([30, 12, 29, 1], np.int32)
    batch = Batch(np.array([2, 0, 3, 1]), xs, lengths, np.array([0, 6, 3, 3]))
    model = Classifier(hidden, key=jax.random.key(0))
    optimiser = optax.adam(0.01)
    found = []
    for contestant in CONTESTANTS:
        trained = start(contestant, model, optimiser, (count, length, hidden))
        step = jax.jit(training_step(contestant, optimiser, 20))
        for _ in range(2):
            trained, told = step(trained, batch)
            assert not told.failed
        found.append(trained)
    loop = found[0].model
    for trained in found[1:]:
        for leaf, expected in zip(
            jax.tree.leaves(trained.model), jax.tree.leaves(loop), strict=True
        ):
            np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-4)


def test_states_are_kept_by_recording():
    (warm,) = (contestant for contestant in CONTESTANTS if contestant.warm)
    xs = np.random.default_rng(0).standard_normal((2, 20, 6)).astype(np.float32)
    batch = Batch(np.array([2, 0]), xs, np.array([20, 20]), np.array([1, 2]))
    model = Classifier(2, key=jax.random.key(0))
    trained = start(warm, model, optax.sgd(0.1), (3, 20, 2))
    trained, _ = training_step(warm, optax.sgd(0.1), 20)(trained, batch)
    for number, x in zip(batch.numbers, xs, strict=True):
        h, states = model.initial(), []
        for now in x:
            h, _ = model.step(h, now)
            states.append(h)
        np.testing.assert_allclose(trained.states[number], jnp.stack(states), atol=1e-5)
    assert not trained.states[1].any()


def test_padding_does_not_matter():
    model = Classifier(3, key=jax.random.key(0))
    states = jnp.arange(30.0).reshape(10, 3)
    expected = model.linear(states[:4].mean(0))
    found = model.logits(states.at[4:].set(jnp.nan), jnp.array(4))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_recordings():
    try:
        data._path()
    except SystemExit:
        pytest.skip("seglearn is not installed")
    training, test = data.load(50)
    assert (training.xs.shape, test.xs.shape) == ((98, 50, 6), (42, 50, 6))
    assert np.bincount(training.labels).tolist() == [14] * data.CLASSES
    assert np.abs(training.xs.reshape(-1, 6).mean(0)).max() < 1e-4
    np.testing.assert_allclose(training.xs.reshape(-1, 6).std(0), 1, rtol=1e-4)


def test_a_pickle_that_wants_to_act_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(print))
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError, match="print"):
        data._Numbers(file).load()
