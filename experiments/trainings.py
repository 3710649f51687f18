"""Trainings side by side: one and the same, by several ways to solve."""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .common import numbers


class Run:
    """One contestant on its way.

    - `contestant`: has a `name`, and `perturbed`, whether it is the one that only shows
        how far equal trainings drift apart.
    - `trained`: what a training carries from step to step; its buffers are given away.
    """

    def __init__(self, contestant: Any, trained: Any):
        self.contestant = contestant
        self.trained = trained
        self._program: Callable[..., Any] | None = None
        self._seconds: list[float] = []
        self._told: list[Any] = []

    @property
    def sweeps(self) -> int:
        """Those of the last step."""
        return int(self._told[-1].sweeps) if self._told else 0

    def compile(self, step: Callable[..., Any], batch: Any) -> None:
        """Have `step(trained, batch) -> (trained, told)` ready for such batches."""
        compiled = jax.jit(step, donate_argnums=0).lower(self.trained, batch).compile()
        # Once for nothing, to have everything in place; what comes out is dropped.
        jax.block_until_ready(compiled(jax.tree.map(jnp.copy, self.trained), batch))
        self._program = compiled

    def step(self, batch: Any) -> None:
        assert self._program is not None, "compile it first"
        start = time.perf_counter()
        self.trained, told = self._program(self.trained, batch)
        jax.block_until_ready((self.trained, told))
        self._seconds.append(time.perf_counter() - start)
        self._told.append(jax.device_get(told))

    def row(self) -> dict[str, Any]:
        """What is recorded of all steps."""
        return {
            "name": self.contestant.name,
            "control": self.contestant.perturbed,
            "seconds": numbers(self._seconds),
            "losses": numbers([told.loss for told in self._told], 17),
            "sweeps": [int(told.sweeps) for told in self._told],
            "finished": [int(told.finished) for told in self._told],
            "failed": int(np.sum([told.failed for told in self._told])),
        }


def train(runs: Sequence[Run], batches: Iterable[Any], turns: random.Random) -> None:
    """A step of each on every batch, in an order drawn anew.

    What disturbs the machine for a while so disturbs all of them.
    """
    for batch in batches:
        for each in turns.sample(runs, len(runs)):
            each.step(batch)


def words(runs: Sequence[Run]) -> str:
    """How it goes: sweeps of the last step of those that sweep."""
    return " and ".join(f"{each.sweeps} sweeps" for each in runs if each.sweeps)
