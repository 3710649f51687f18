"""The gradient of a loop: its own, and that of the chain at its states."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from parafix.deer.jax import scan

from ..cells import CELLS
from ..gru import GRADIENT, INPUTS
from ..harness import Case, Comparison, Contestant
from ..jax_programs import in_float64, jax_environment, jax_program, named_arrays
from ..table import Table


LOOP, CHAIN = "lax.scan", 'adjoint="implicit"'
TANGENT = "value and tangent"

# Cell, sizes of the state, lengths. With a diagonal the work does not grow with `n^2`.
GRID = (
    ("GRU", (1, 2, 4, 8, 16, 32, 64), (1_000, 10_000)),
    ("tanh", (2, 8, 16), (1_000, 10_000)),
    ("LSTM", (2, 8, 16), (1_000, 10_000)),
    ("diagonal GRU", (8, 32, 64), (1_000, 10_000)),
    ("GRU", (2, 8), (256,)),
)
BATCHES = (1, 16)


@dataclasses.dataclass(frozen=True)
class _Problem:
    cell: str
    batch: int
    length: int
    size: int

    @functools.cached_property
    def arguments(self) -> tuple[Any, Any, np.ndarray]:
        draw = np.random.default_rng(0)
        weights, init = CELLS[self.cell].make(draw, self.size)
        xs = draw.standard_normal((self.batch, self.length, INPUTS))
        return weights, init, xs.astype(np.float32)

    def loss(self, name: str, weights: Any, init: Any, xs: Any) -> jax.Array:
        """The mean square of all outputs; the same initial carry for all samples."""
        cell = CELLS[self.cell]
        step = functools.partial(cell.step, weights)

        def outputs(xs):
            if name == LOOP:
                return lax.scan(step, init, xs)[1]
            options = {"solver": "sequential", "adjoint": "implicit"}
            return scan(step, init, xs, structure=cell.structure, **options)[1]

        return jnp.mean(jax.vmap(outputs)(xs) ** 2)

    def function(self, name: str, group: str) -> Any:
        loss = functools.partial(self.loss, name)
        if group == GRADIENT:
            return jax.value_and_grad(loss, (0, 1))

        def along(weights, init, xs):
            # In the direction of the weights themselves.
            return jax.jvp(lambda w: loss(w, init, xs), (weights,), (weights,))

        return along


def cases(quick: bool) -> Iterator[Case]:
    for group in (GRADIENT, TANGENT):
        for cell, sizes, lengths in GRID:
            for length in lengths:
                for batch in BATCHES:
                    for size in sizes:
                        if not quick:
                            yield _case(group, _Problem(cell, batch, length, size))
                        elif (length, size, batch) == (1_000, 8, 1):
                            yield _case(group, _Problem(cell, batch, 100, size))


def _case(group, problem):
    return Case(
        group,
        f"{problem.cell} B={problem.batch} T={problem.length} n={problem.size}",
        [
            Contestant(
                name,
                functools.partial(
                    jax_program,
                    problem.function(name, group),
                    *map(jax.device_put, problem.arguments),
                ),
            )
            for name in (LOOP, CHAIN)
        ],
        [Comparison(CHAIN, LOOP)],
        lambda: named_arrays(
            in_float64(problem.function(LOOP, group), *problem.arguments)
        ),
        limit=1e-3,
    )


TABLE = Table(
    "Derivatives of a sequential loop in JAX",
    'scan(solver="sequential", adjoint="implicit") beside lax.scan: the same loop '
    "forward, and then its own derivative or one affine scan over Jacobians at its "
    "states. Cells with 2 inputs and n numbers in their states, float32; the batch by "
    "vmap. The gradient is that of the mean square of all outputs in the weights and "
    "the initial carry, the tangent that along the weights.",
    cases,
    [],
    jax_environment,
)
