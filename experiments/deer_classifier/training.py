"""The classifier, and one step of its training with a solver."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from parafix.core.jax import RESULTS
from parafix.deer.jax import scan

from .data import CHANNELS, CLASSES


class Classifier(eqx.Module):
    """A GRU, the mean of its states over time, and a linear layer."""

    cell: eqx.nn.GRUCell
    linear: eqx.nn.Linear

    def __init__(self, hidden: int, *, key: Any):
        first, second = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(CHANNELS, hidden, key=first)
        self.linear = eqx.nn.Linear(hidden, CLASSES, key=second)

    def initial(self) -> jax.Array:
        return jnp.zeros(self.cell.hidden_size)

    def step(self, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = self.cell(x, h)
        return h, h

    def logits(self, states: jax.Array, length: jax.Array) -> jax.Array:
        """Of states `(T, n)`, those of the padding left out."""
        inside = jnp.arange(len(states)) < length
        return self.linear(jnp.where(inside[:, None], states, 0).sum(0) / length)


class Trained(NamedTuple):
    """What a training carries from step to step.

    - `states`: of all recordings `(N, T, n)`, as last seen; `None` if nobody asks.
    """

    model: Classifier
    optimiser: Any
    states: jax.Array | None


class Told(NamedTuple):
    """What a step tells.

    - `sweeps`: of the slowest sample.
    - `finished`: of how many samples a loop had to find the last states.
    - `failed`: how many solves failed nevertheless.
    """

    loss: jax.Array
    sweeps: jax.Array
    finished: jax.Array
    failed: jax.Array


class Batch(NamedTuple):
    numbers: Any
    xs: Any
    lengths: Any
    labels: Any


def _sequential(model, xs, length, guess, sweeps):
    # The states of the padding are not looked at: no need to know where it is.
    del length, guess, sweeps
    # `jax.lax.scan` itself.
    _, states = scan(model.step, model.initial(), xs, solver="sequential")
    return states, (jnp.array(0), jnp.array(False), jnp.array(False))


def _deer(model, xs, length, guess, sweeps):
    (_, states), solution = scan(
        model.step,
        model.initial(),
        xs,
        solver="deer",
        guess=guess,
        # What follows on zeros for a thousand steps takes sweeps, too.
        lengths=length,
        max_steps=sweeps,
        fallback="sequential",
        # A training goes on, and counts.
        throw=False,
        return_solution=True,
    )
    finished = solution.stats["sequential_from"] < len(xs)
    failed = solution.result != RESULTS.successful
    return states, (solution.stats["num_steps"], finished, failed)


class Contestant(NamedTuple):
    """A way to train.

    - `solve`: `(model, xs, length, guess, most_sweeps) -> (states, (sweeps, finished,
        failed))` of one recording.
    - `warm`: whether sweeps start from the states of the epoch before.
    - `perturbed`: whether the weights start one rounding away.
    """

    name: str
    solve: Callable[..., Any]
    warm: bool = False
    perturbed: bool = False


CONTESTANTS = (
    Contestant("sequential", _sequential),
    Contestant("deer", _deer),
    Contestant("deer, warm start", _deer, warm=True),
    Contestant("one rounding away", _sequential, perturbed=True),
)


def start(
    contestant: Contestant, model: Classifier, optimiser: Any, shape: tuple[int, ...]
) -> Trained:
    """Buffers of its own: a step gives those that it is given back."""
    model = jax.tree.map(jnp.copy, model)
    if contestant.perturbed:
        eps = jnp.finfo(jnp.float32).eps
        model = jax.tree.map(lambda w: w * (1 + eps), model)
    states = jnp.zeros(shape) if contestant.warm else None
    return Trained(model, optimiser.init(model), states)


def training_step(
    contestant: Contestant, optimiser: Any, sweeps: int
) -> Callable[..., Any]:
    """`(trained, batch) -> (trained, told)`, to be compiled."""

    def loss(model, batch, guess):
        solve = functools.partial(contestant.solve, model, sweeps=sweeps)
        in_axes = (0, 0, None if guess is None else 0)
        solve = jax.vmap(solve, in_axes)
        states, (most, *counts) = solve(batch.xs, batch.lengths, guess)
        logits = jax.vmap(model.logits)(states, batch.lengths)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        mean = losses.mean()
        counts = (count.sum() for count in counts)
        return mean, (states, Told(mean, most.max(), *counts))

    def step(trained, batch):
        model, state, known = trained
        guess = None if known is None else known[batch.numbers]
        gradient = jax.grad(loss, has_aux=True)
        gradients, (states, told) = gradient(model, batch, guess)
        updates, state = optimiser.update(gradients, state)
        if known is not None:
            known = known.at[batch.numbers].set(states)
        return Trained(eqx.apply_updates(model, updates), state, known), told

    return step


def evaluate(model: Classifier, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The mean loss, how many are right, and the largest Lyapunov exponent.

    Sequential, whoever trained the model. The exponent is per step and without padding.
    """

    def of_sample(xs, length):
        (_, states), solution = scan(
            model.step,
            model.initial(),
            xs,
            solver="sequential",
            lengths=length,
            return_solution=True,
        )
        return model.logits(states, length), solution.stats["lyapunov_exponent"]

    logits, exponents = jax.vmap(of_sample)(batch.xs, batch.lengths)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    right = (logits.argmax(1) == batch.labels).sum()
    return losses.mean(), right, exponents.max()
