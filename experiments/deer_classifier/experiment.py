"""Trains the classifier in all ways at once, a step of each in turn."""

import random
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from ..common import Advance, number, numbers
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
        trained = start(contestant, model, optimiser, shape)
        step = training_step(contestant, optimiser, config.sweeps)
        lowered = jax.jit(step, donate_argnums=0).lower(trained, batches[0])
        compiled = lowered.compile()
        # Once for nothing, to have everything in place; what comes out is dropped.
        jax.block_until_ready(compiled(trained, batches[0]))
        trained = start(contestant, model, optimiser, shape)
        runs.append(_Run(contestant, compiled, trained))
    everything = [
        Batch(np.arange(len(half.labels)), half.xs, half.lengths, half.labels)
        for half in (training, test)
    ]
    judge = jax.jit(evaluate)
    turns = random.Random(seed)
    for each in runs:
        each.assess(judge, everything)
    for epoch in range(config.epochs):
        advance(f"seed {seed}: epoch {epoch + 1}, {_now(runs)}")
        for batch in _batches(training, config.batch, order):
            # In turns, in an order drawn anew: what disturbs the machine for a while
            # disturbs all of them.
            for each in turns.sample(runs, len(runs)):
                each.step(batch)
        for each in runs:
            each.assess(judge, everything)
    for each in runs:
        yield {"seed": seed, **each.row(len(test.labels))}


def _now(runs):
    """Sweeps of the last step of those that sweep."""
    return " and ".join(f"{n} sweeps" for each in runs if (n := each.sweeps))


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


class _Run:
    """One contestant on its way."""

    def __init__(self, contestant, compiled, trained):
        self.contestant = contestant
        self._compiled = compiled
        self._trained = trained
        self._seconds, self._told = [], []
        self._training_losses, self._right, self._exponents = [], [], []

    @property
    def sweeps(self) -> int:
        return int(self._told[-1].sweeps) if self._told else 0

    def step(self, batch: Batch) -> None:
        start = time.perf_counter()
        self._trained, told = self._compiled(self._trained, batch)
        jax.block_until_ready((self._trained, told))
        self._seconds.append(time.perf_counter() - start)
        self._told.append(jax.device_get(told))

    def assess(self, judge, halves) -> None:
        """The loss of the training half and who is right in the other; not timed."""
        loss, _, _ = judge(self._trained.model, halves[0])
        _, right, exponent = judge(self._trained.model, halves[1])
        self._exponents.append(exponent)
        self._training_losses.append(loss)
        self._right.append(right)

    def row(self, count: int) -> dict[str, Any]:
        return {
            "name": self.contestant.name,
            "control": self.contestant.perturbed,
            "seconds": numbers(self._seconds),
            "losses": numbers([told.loss for told in self._told], 9),
            "sweeps": [int(told.sweeps) for told in self._told],
            "finished": [int(told.finished) for told in self._told],
            "failed": int(np.sum([told.failed for told in self._told])),
            # Before the first epoch and after each.
            "training_losses": numbers(self._training_losses),
            # The largest of the recordings not seen: above zero, rounding grows.
            "exponents": numbers(self._exponents, 4),
            "accuracies": [number(right / count, 4) for right in self._right],
        }
