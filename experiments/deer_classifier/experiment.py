"""Trains the classifier in all ways at once, a step of each in turn."""

import random
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from ..common import Advance, number, numbers
from ..trainings import Run, train, words
from .config import Config
from .data import load, Recordings
from .training import (
    Batch,
    Classifier,
    CONTESTANTS,
    evaluate,
    start,
    training_step,
)


def steps(config: Config) -> int:
    return config.seeds * (len(CONTESTANTS) + config.epochs)


def run(config: Config, advance: Advance) -> Iterator[dict[str, Any]]:
    """A row for each seed and contestant."""
    training, test = load(config.length)
    for seed in range(config.seeds):
        with jax.default_matmul_precision("highest"):
            yield from _train(config, seed, training, test, advance)


def _train(config, seed, training: Recordings, test: Recordings, advance):
    model = Classifier(config.hidden, key=jax.random.key(seed))
    clip = optax.clip_by_global_norm(config.clip)
    optimiser = optax.chain(clip, optax.adam(config.rate))
    count = len(training.labels)
    shape = (count, config.length, config.hidden)
    order = np.random.default_rng(seed)
    batches = _batches(training, config.batch, order)
    runs = []
    for contestant in CONTESTANTS:
        advance(f"seed {seed}: compiling {contestant.name}")
        each = _Run(contestant, start(contestant, model, optimiser, shape))
        each.compile(training_step(contestant, optimiser, config.sweeps), batches[0])
        runs.append(each)
    everything = [
        Batch(np.arange(len(half.labels)), half.xs, half.lengths, half.labels)
        for half in (training, test)
    ]
    judge = jax.jit(evaluate)
    turns = random.Random(seed)
    for each in runs:
        each.assess(judge, everything)
    for epoch in range(config.epochs):
        advance(f"seed {seed}: epoch {epoch + 1}, {words(runs)}")
        train(runs, _batches(training, config.batch, order), turns)
        for each in runs:
            each.assess(judge, everything)
    for each in runs:
        yield {"seed": seed, **each.told(len(test.labels))}


def _batches(training, size, order):
    """All recordings in a new order; those that fill no batch are left out."""
    mixed = order.permutation(len(training.labels))
    batches = []
    for first in range(0, len(mixed) - size + 1, size):
        chosen = mixed[first : first + size]
        arrays = (training.xs, training.lengths, training.labels)
        batch = Batch(chosen, *(array[chosen] for array in arrays))
        # On the device before the clock starts.
        batches.append(jax.device_put(batch))
    return batches


class _Run(Run):
    """A training, and how the classifier does after each epoch."""

    def __init__(self, contestant, trained):
        super().__init__(contestant, trained)
        self._training_losses, self._right, self._exponents = [], [], []

    def assess(self, judge, halves) -> None:
        """The loss of the training half and who is right in the other; not timed."""
        loss, _, _ = judge(self.trained.model, halves[0])
        _, right, exponent = judge(self.trained.model, halves[1])
        self._exponents.append(exponent)
        self._training_losses.append(loss)
        self._right.append(right)

    def told(self, count: int) -> dict[str, Any]:
        return {
            **self.row(),
            # Before the first epoch and after each.
            "training_losses": numbers(self._training_losses),
            # The largest of the recordings not seen: above zero, rounding grows.
            "exponents": numbers(self._exponents, 4),
            "accuracies": [number(right / count, 4) for right in self._right],
        }
