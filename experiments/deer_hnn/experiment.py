"""Trains the network in all ways at once, a step of each in turn."""

import random
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax

from ..common import Advance, number, numbers
from ..trainings import Run, train, words
from .config import Config
from .data import energy, trajectories
from .training import (
    Batch,
    CONTESTANTS,
    evaluate,
    Hamiltonian,
    start,
    training_step,
)


# Of how many points of an orbit a picture is drawn.
_DRAWN = 250


def steps(config: Config) -> int:
    stages = len(config.stages)
    return config.seeds * stages * (len(CONTESTANTS) + config.epochs)


def run(config: Config, advance: Advance) -> Iterator[dict[str, Any]]:
    """A row for each seed and contestant."""
    with jax.enable_x64(True):
        times = np.linspace(0, config.end, config.points + 1)
        shape = (config.end, config.points)
        training = trajectories(config.train, *shape, seed=0)
        test = trajectories(config.test, *shape, seed=1)
        for seed in range(config.seeds):
            yield from _train(config, seed, times, training, test, advance)


def _train(config, seed, times, training, test, advance):
    model = Hamiltonian(config.hidden, config.layers, key=jax.random.key(seed))
    _, static = eqx.partition(model, eqx.is_array)
    optimiser = optax.adam(config.rate)
    # Before the first epoch nothing is known but where trajectories start.
    first = np.broadcast_to(training[:, :1], training[:, 1:].shape)
    order, turns = np.random.default_rng(seed), random.Random(seed)
    runs = [_Run(each, start(each, model, optimiser, first)) for each in CONTESTANTS]
    judge = jax.jit(lambda parameters, *data: evaluate(parameters, static, *data))
    for each in runs:
        each.assess(judge, training[:, : config.stages[0] + 1], times)
    for points in config.stages:
        here = training[:, : points + 1], times[: points + 1]
        batches = _batches(*here, config.batch, np.random.default_rng(0))
        for each in runs:
            advance(f"seed {seed}: {points} points: compiling {each.contestant.name}")
            step = training_step(each.contestant, static, optimiser, config.sweeps)
            each.compile(step, batches[0])
        for epoch in range(config.epochs):
            advance(f"seed {seed}: {points} points, epoch {epoch + 1}, {words(runs)}")
            train(runs, _batches(*here, config.batch, order), turns)
            for each in runs:
                each.assess(judge, *here)
    for each in runs:
        yield {"seed": seed, **each.told(judge, test, times)}


def _batches(states, times, size, order):
    """All trajectories in a new order; those that fill no batch are left out."""
    mixed = order.permutation(len(states))
    return [
        # On the device before the clock starts.
        jax.device_put(Batch(chosen, states[chosen], times))
        for first in range(0, len(mixed) - size + 1, size)
        for chosen in [mixed[first : first + size]]
    ]


class _Run(Run):
    """A training, and how the network does after each epoch."""

    def __init__(self, contestant, trained):
        super().__init__(contestant, trained)
        self._training_losses, self._points = [], []

    def assess(self, judge, states, times) -> None:
        """The loss of all trajectories as far as they are looked at; not timed."""
        times = times[: states.shape[1]]
        loss, _ = judge(self.trained.model, states, times)
        self._training_losses.append(loss)
        self._points.append(len(times) - 1)

    def told(self, judge, test, times) -> dict[str, Any]:
        loss, found = judge(self.trained.model, test, times)
        found = np.asarray(found)
        drift = np.abs(energy(found) - energy(test[:, :1]))
        thin = max(1, len(times) // _DRAWN)
        return {
            **self.row(),
            # Before the first epoch and after each, of so many points.
            "training_losses": numbers(self._training_losses),
            "points": self._points,
            "test_loss": number(loss),
            # Of the true energy, along what was found.
            "energy_drift": number(drift.max() / np.abs(energy(test[:, 0])).max()),
            # The first body of the first trajectory that was not trained on.
            "orbit": [numbers(q[::thin], 4) for q in found[0, :, :2].T],
            "true_orbit": [numbers(q[1::thin], 4) for q in test[0, :, :2].T],
        }
