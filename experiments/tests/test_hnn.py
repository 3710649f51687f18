"""The Hamiltonian network and what it learns from."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.deer_hnn import data
from experiments.deer_hnn.training import (
    Batch,
    CONTESTANTS,
    Hamiltonian,
    start,
    training_step,
)


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def test_trajectories():
    states = data.trajectories(3, 10.0, 50, seed=0)
    assert states.shape == (3, 51, data.SIZE)
    energy = data.energy(states)
    np.testing.assert_allclose(energy, energy[:, :1] * np.ones(51), rtol=1e-8)
    # The centre rests, and both orbits are bound.
    np.testing.assert_allclose(states[..., :2], -states[..., 2:4], atol=1e-8)
    np.testing.assert_allclose(states[..., 4:6], -states[..., 6:], atol=1e-8)
    assert (energy < 0).all()


def test_the_motion_keeps_the_energy_of_the_network():
    model = Hamiltonian(5, 2, key=jax.random.key(0))
    y = jnp.linspace(-1, 1, data.SIZE)
    slope = jax.grad(model.network)(y)
    np.testing.assert_allclose(slope @ model(0.0, y), 0, atol=1e-15)


def test_all_train_alike():
    times = np.linspace(0, 1, 31)
    states = data.trajectories(3, 1.0, 30, seed=0)
    model = Hamiltonian(4, 1, key=jax.random.key(0))
    _, static = eqx.partition(model, eqx.is_array)
    optimiser = optax.adam(0.01)
    first = np.broadcast_to(states[:, :1], states[:, 1:].shape)
    batch = Batch(np.array([2, 0]), states[[2, 0]], times)
    found = []
    for contestant in CONTESTANTS:
        trained = start(contestant, model, optimiser, first)
        step = jax.jit(training_step(contestant, static, optimiser, 20))
        for _ in range(2):
            trained, told = step(trained, batch)
            assert not told.failed
        if contestant.warm:
            assert trained.states is not None
            np.testing.assert_array_equal(trained.states[1], first[1])
            assert np.abs(trained.states[2] - first[2]).max() > 0.1
        found.append(trained)
    for trained in found[1:]:
        for leaf, expected in zip(
            jax.tree.leaves(trained.model), jax.tree.leaves(found[0].model), strict=True
        ):
            np.testing.assert_allclose(leaf, expected, rtol=1e-9, atol=1e-12)
