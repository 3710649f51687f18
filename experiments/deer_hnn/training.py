"""The network, and one step of its training with a solver."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from parafix.core.jax import RESULTS
from parafix.deer.jax import diffeqsolve

from .data import SIZE


class Hamiltonian(eqx.Module):
    """A network `H(q, p)` and the motion `(dH/dp, -dH/dq)` that follows from it.

    Greydanus, Dzamba and Yosinski, "Hamiltonian Neural Networks", NeurIPS 2019.
    """

    network: eqx.nn.MLP

    def __init__(self, hidden: int, layers: int, *, key: Any):
        self.network = eqx.nn.MLP(
            SIZE, "scalar", hidden, layers, activation=jax.nn.softplus, key=key
        )

    def __call__(self, t: Any, y: jax.Array, args: Any = None) -> jax.Array:
        del t, args
        slope = jax.grad(self.network)(y)
        return jnp.concatenate([slope[SIZE // 2 :], -slope[: SIZE // 2]])


class Trained(NamedTuple):
    """What a training carries from step to step.

    - `states`: of all trajectories `(N, points, 8)`, as last seen; `None` if nobody
        asks.
    """

    model: Hamiltonian
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
    """Which trajectories, their states `(B, points + 1, 8)`, and their times."""

    numbers: Any
    states: Any
    times: Any


class Contestant(NamedTuple):
    """A way to train.

    - `root_finder`: of `diffeqsolve`.
    - `warm`: whether sweeps start from the trajectories of the epoch before.
    - `perturbed`: whether the weights start one rounding away.
    """

    name: str
    root_finder: str
    warm: bool = False
    perturbed: bool = False


CONTESTANTS = (
    Contestant("sequential", "sequential"),
    Contestant("deer", "deer"),
    Contestant("deer, warm start", "deer", warm=True),
    Contestant("one rounding away", "sequential", perturbed=True),
)


def solve(
    model: Hamiltonian,
    y0: jax.Array,
    times: jax.Array,
    guess: jax.Array | None,
    contestant: Contestant,
    sweeps: int,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """The states `(points, 8)` after `y0`, and sweeps, finished, failed."""
    swept = contestant.root_finder != "sequential"
    solution = diffeqsolve(
        diffrax.ODETerm(model),
        diffrax.Heun(),
        times[0],
        times[-1],
        None,
        y0,
        stepsize_controller=diffrax.StepTo(times),
        saveat=diffrax.SaveAt(steps=True),
        root_finder=contestant.root_finder,
        guess="coarse" if guess is None else guess,
        # A training goes on, and counts.
        throw=False,
        **({"max_sweeps": sweeps, "fallback": "sequential"} if swept else {}),
    )
    stats = solution.stats
    steps = len(times) - 1
    count = stats["num_sweeps"] if swept else jnp.array(0)
    finished = (stats["sequential_from"] < steps) & swept
    failed = stats["result"] != RESULTS.successful
    assert solution.ys is not None
    return solution.ys, (count, finished, failed)


def start(
    contestant: Contestant, model: Hamiltonian, optimiser: Any, first: jax.Array
) -> Trained:
    """`first` are states to start the first sweeps from: `(N, points, 8)`."""
    # Buffers of its own: a step gives those away that it is given.
    model = jax.tree.map(lambda x: x + 0 if eqx.is_array(x) else x, model)
    if contestant.perturbed:
        model = jax.tree.map(
            lambda x: x * (1 + jnp.finfo(x.dtype).eps) if eqx.is_array(x) else x, model
        )
    states = first + 0 if contestant.warm else None
    parameters = eqx.filter(model, eqx.is_array)
    return Trained(parameters, optimiser.init(parameters), states)


def training_step(
    contestant: Contestant, static: Any, optimiser: Any, sweeps: int
) -> Callable[..., Any]:
    """`(trained, batch) -> (trained, told)`, to be compiled.

    The loss is the mean square of the distance from the trajectories, at the times of
    the batch, of which there may be fewer than states are kept of.
    """

    def loss(parameters, batch, guess):
        one = functools.partial(
            *(solve, eqx.combine(parameters, static)),
            contestant=contestant,
            sweeps=sweeps,
        )
        in_axes = (0, None, None if guess is None else 0)
        states, (most, *counts) = jax.vmap(one, in_axes)(
            batch.states[:, 0], batch.times, guess
        )
        mean = jnp.mean((states - batch.states[:, 1:]) ** 2)
        counts = (count.sum() for count in counts)
        return mean, (states, Told(mean, most.max(), *counts))

    def step(trained, batch):
        parameters, state, known = trained
        points = len(batch.times) - 1
        guess = None if known is None else known[batch.numbers, :points]
        gradient = jax.grad(loss, has_aux=True)
        gradients, (states, told) = gradient(parameters, batch, guess)
        updates, state = optimiser.update(gradients, state)
        if known is not None:
            known = known.at[batch.numbers, :points].set(states)
            # The next stage goes on from where this one ends.
            known = known.at[batch.numbers, points:].set(states[:, -1:])
        parameters = optax.apply_updates(parameters, updates)
        return Trained(parameters, state, known), told

    return step


def evaluate(
    parameters: Any, static: Any, states: jax.Array, times: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The mean square distance from trajectories, and what was found instead of them.

    Sequential, whoever trained the network.
    """
    model = eqx.combine(parameters, static)
    one = functools.partial(
        solve, model, guess=None, contestant=CONTESTANTS[0], sweeps=1
    )
    found, _ = jax.vmap(lambda y0: one(y0, times))(states[:, 0])
    return jnp.mean((found - states[:, 1:]) ** 2), found
