"""`parafix.feedforward.jax.invert` beside the inverse of flowjax."""

import dataclasses
import functools
import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from parafix.core.jax import RESULTS

from ..autoregressive_data import squashed_ar1
from ..harness import Answer, Case, Comparison, Contestant, Effort, Program
from ..jax_programs import jax_environment, jax_program
from ..table import faster, Table


FEATURES, SAMPLES = 784, 16
HIDDEN, WIDER = 256, 512
TRAINING_SAMPLES = 100
# Steps and learning rate, as in the table `flows`.
LITTLE, LONGER = (30, 1e-4), (300, 1e-3)
OWN, OURS = "own inverse", "parafix invert"


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A bijection that was trained for some steps, and noise to make sequences of."""

    features: int
    count: int = 1
    hidden: int = HIDDEN
    training: tuple[int, float] = LITTLE

    @functools.cached_property
    def noise(self) -> np.ndarray:
        draw = np.random.default_rng(1)
        return draw.standard_normal((SAMPLES, self.features)).astype(np.float32)

    @functools.cached_property
    def bijection(self) -> Any:
        """From sequences to noise."""
        steps, rate = self.training
        flows = importlib.import_module("flowjax.flows")
        normal = importlib.import_module("flowjax.distributions").Normal
        optax = importlib.import_module("optax")
        flow = flows.masked_autoregressive_flow(
            jax.random.key(0),
            base_dist=normal(jnp.zeros(self.features)),
            flow_layers=self.count,
            nn_width=self.hidden,
            nn_depth=2,
        )
        # flowjax inverts it again, for densities to be fast.
        arrays, others = eqx.partition(flow.bijection.bijection, eqx.is_inexact_array)
        optimiser = optax.adam(rate)

        def loss(arrays, batch):
            bijection = eqx.combine(arrays, others)
            noise, log_abs_det = jax.vmap(bijection.transform_and_log_det)(batch)
            # The negative logarithm of the density, but for a constant.
            return (jnp.square(noise).sum(1) / 2 - log_abs_det).mean()

        @jax.jit
        def step(arrays, state, batch):
            updates, state = optimiser.update(jax.grad(loss)(arrays, batch), state)
            return optax.apply_updates(arrays, updates), state

        state = optimiser.init(arrays)
        draw = np.random.default_rng(0)
        for _ in range(steps):
            batch = squashed_ar1(draw, TRAINING_SAMPLES, self.features)
            arrays, state = step(arrays, state, batch)
        return eqx.combine(arrays, others)

    @functools.cache  # noqa: B019 (a problem lives as long as its case)
    def reference(self) -> Answer:
        return answer(jax.jit(jax.vmap(self.bijection.inverse_and_log_det))(self.noise))

    def program(self, name: str) -> Program:
        # Here, for the table to be listed where the package is not installed.
        from parafix.feedforward.jax import invert

        arrays, others = eqx.partition(self.bijection, eqx.is_array)

        def own(arrays, noise):
            bijection = eqx.combine(arrays, others)
            return jax.vmap(bijection.inverse_and_log_det)(noise)

        def ours(arrays, noise):
            bijection = eqx.combine(arrays, others)
            x, log_abs_det, solution = jax.vmap(lambda y: invert(bijection, y))(noise)
            return x, log_abs_det, solution.result._value, solution.stats

        if name == OWN:
            facts = lambda: {"evaluations": self.count * (self.features + 1)}
            return jax_program(own, arrays, self.noise, facts=facts, answer=answer)
        program = jax_program(ours, arrays, self.noise, answer=answer)
        return dataclasses.replace(program, facts=lambda: facts_of(program.run()))


def facts_of(output: tuple[Any, ...]) -> dict[str, float | int | str]:
    _, _, codes, stats = output
    failed = bool((codes != RESULTS.successful._value).any())
    return {
        "sweeps": int(stats["num_steps"].max()),
        "evaluations": int(stats["num_evals"].max()),
        "result": "failed" if failed else "successful",
    }


def answer(output: tuple[Any, ...]) -> Answer:
    x, log_abs_det, *_ = output
    return {"x": np.asarray(x), "log_abs_det": np.asarray(log_abs_det)}


def cases(quick: bool) -> Iterator[Case]:
    features = FEATURES // 8 if quick else FEATURES
    longer = (10, 1e-3) if quick else LONGER
    yield _case("flowjax", "1 transform", Problem(features))
    yield _case("flowjax", "3 transforms", Problem(features, 3))
    group = "flowjax, harder"
    yield _case(group, f"{WIDER} units", Problem(features, hidden=WIDER))
    yield _case(group, f"{longer[0]} steps", Problem(features, training=longer))


def _case(group, name, problem):
    return Case(
        group,
        name,
        [
            Contestant(name, functools.partial(problem.program, name))
            for name in (OWN, OURS)
        ],
        [Comparison(OWN, OURS)],
        problem.reference,
        # Two compiled programs may round differently.
        limit=1e-6,
        unavailable="" if find_spec("flowjax") else "flowjax is not installed",
    )


TABLE = Table(
    "Inverses of masked autoregressive flows in JAX",
    f"From noise to sequences, D={FEATURES}, a batch of {SAMPLES} by vmap, float32, "
    "compiled. The masked autoregressive flow of flowjax with affine transforms and "
    f"random permutations between them, two hidden layers of {HIDDEN} units, in a "
    f"harder case {WIDER}. Trained by Adam on batches of {TRAINING_SAMPLES} sequences "
    "(the hyperbolic tangent of an autoregressive process of first order, drawn by "
    "NumPy), for {} steps at a learning rate of {}, in a harder case {} at {}. ".format(
        *LITTLE, *LONGER
    )
    + "The reference is flowjax's own inverse, called once more; its own program is a "
    "sequential scan. Evaluations are calls of networks, those of the slowest sample.",
    cases,
    [faster("flowjax", OWN, OURS, 10)],
    jax_environment,
    Effort(repeats=5, patience=1),
)
