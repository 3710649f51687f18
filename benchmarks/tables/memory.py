"""Temporary memory of value-and-gradient, and of a forward pass."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parafix.deer.jax import DEER

from ..gru import (
    contestants,
    FORWARD,
    GRADIENT,
    parafix_solver,
    Problem,
    SEQUENTIAL,
    Solver,
    TOLERANCE,
)
from ..harness import Answer, Case, Comparison, Contestant, Effort, Facts
from ..jax_programs import in_float64, jax_environment, jax_program, named_arrays
from ..table import lighter, share, Table
from ..verdicts import worst_result


WHOLE = parafix_solver("deer, window=None", solver="deer")
WINDOWS = parafix_solver("deer, window=64", solver="deer", window=64)
CHUNKS = parafix_solver("deer, chunk=32", solver=DEER(TOLERANCE, TOLERANCE, chunk=32))
LENGTH = 16_384
NAME = "T={} n=64"
LAYERS = (1, 4)
LAYERS_LENGTH = 4096
LAYERS_NAME = "T={} n=32 layers={}"
LAYERS_GROUP = f"{GRADIENT} of layers"


def unchunked(length: int) -> Solver:
    """DEER with the Jacobian blocks of all times in memory at once."""
    solver = DEER(TOLERANCE, TOLERANCE, chunk=length)
    return parafix_solver("deer, all blocks at once", solver=solver)


@dataclasses.dataclass(frozen=True)
class Stack:
    """`layers` of the GRU, each over all states of the one before."""

    length: int
    size: int
    layers: int

    @functools.cached_property
    def arguments(self) -> tuple[Any, Any, np.ndarray]:
        """`(weights, inits, xs)`, the first two by layers."""
        first = Problem(None, self.length, self.size)
        others = (
            Problem(None, self.length, self.size, seed, self.size)
            for seed in range(1, self.layers)
        )
        each = [problem.arguments for problem in (first, *others)]
        weights, inits, xs = zip(*each, strict=True)
        return weights, inits, xs[0]

    def gradient(self, solver: Solver) -> Callable[..., Any]:
        """The mean square of the last states, and its gradient in all weights."""

        def loss(weights, inits, xs):
            for of_layer, init in zip(weights, inits, strict=True):
                xs = solver.states(of_layer, init, xs)
            return jnp.mean(xs**2)

        return jax.value_and_grad(loss, argnums=(0, 1))

    @functools.cached_property
    def reference(self) -> Answer:
        return named_arrays(in_float64(self.gradient(SEQUENTIAL), *self.arguments))

    def facts(self, solver: Solver) -> Facts:
        """The result code of the worst layer, from a run that is not timed."""
        weights, inits, xs = self.arguments
        codes = []
        for of_layer, init in zip(weights, inits, strict=True):
            xs, _, code = jax.jit(solver.informed)(of_layer, init, xs)
            codes.append(code)
        if codes[0] is None:
            return {}
        return {"result": worst_result(np.stack(codes))}

    def contestants(self, solvers: Sequence[Solver]) -> list[Contestant]:
        return [
            Contestant(
                solver.name,
                functools.partial(
                    jax_program,
                    self.gradient(solver),
                    *self.arguments,
                    facts=functools.partial(self.facts, solver),
                ),
            )
            for solver in solvers
        ]


def cases(quick: bool) -> Iterator[Case]:
    length = LENGTH // 16 if quick else LENGTH
    problem = Problem(None, length, 64)
    yield Case(
        GRADIENT,
        NAME.format(length),
        contestants(problem, GRADIENT, (WINDOWS, WHOLE, SEQUENTIAL)),
        (
            Comparison(WINDOWS.name, WHOLE.name),
            Comparison(WINDOWS.name, SEQUENTIAL.name),
        ),
        lambda problem=problem: problem.gradient_reference,
        limit=1e-3,
    )
    length = LAYERS_LENGTH // 16 if quick else LAYERS_LENGTH
    solvers = (WHOLE, WINDOWS, unchunked(length), SEQUENTIAL)
    for layers in LAYERS:
        stack = Stack(length, 32, layers)
        yield Case(
            LAYERS_GROUP,
            LAYERS_NAME.format(length, layers),
            stack.contestants(solvers),
            [Comparison(WHOLE.name, other.name) for other in solvers[1:]],
            lambda stack=stack: stack.reference,
            limit=1e-3,
        )
    problem = Problem(None, length, 32)
    solvers = (CHUNKS, WHOLE, unchunked(length), SEQUENTIAL)
    yield Case(
        FORWARD,
        LAYERS_NAME.format(length, 1),
        contestants(problem, FORWARD, solvers),
        [Comparison(CHUNKS.name, other.name) for other in solvers[1:]],
        lambda problem=problem: problem.forward_reference,
        limit=1e-4,
    )


TABLE = Table(
    "Temporary memory of value-and-gradient",
    "The GRU of deer-scan, one sequence without vmap; in the cases of several layers, "
    "each over all states of the one before, in one program. The memory is the peak "
    "that the compiled program needs beside its arguments and results, as XLA states "
    "it. Jacobian blocks of all times are T n^2 floats: 16 MiB for T=4096 and n=32.",
    cases,
    [
        lighter(NAME.format(LENGTH), WINDOWS.name, 20),
        *(
            share(LAYERS_NAME.format(LAYERS_LENGTH, layers), ours, SEQUENTIAL.name, 1)
            for layers in LAYERS
            for ours in (WHOLE.name, WINDOWS.name)
        ),
    ],
    jax_environment,
    # The memory is exact; the times stand beside it for orientation.
    Effort(repeats=5, patience=0),
)
