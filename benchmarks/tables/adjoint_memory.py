"""Temporary memory of gradients through a dense fixed point."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx

from parafix.core.jax import fixed_point

from ..counting import counted, run_counted
from ..harness import Answer, Case, Comparison, Contestant, Effort, Facts, Program
from ..jax_programs import jax_environment, jax_program, named_arrays
from ..table import constant_memory, share, Table


TOLERANCE = 1e-9
SIZE = 30
BATCH = 64
STEPS = (10, 100, 1000)
BATCH_STEPS = 256
ITERATED, BATCHED = "iterations", "batch"
BATCH_NAME = "B={} n=30"

Function = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """`y = tanh(y W^T + x)` for all rows of `y` at once, or the same without `tanh`.

    `W` is `radius` times a random orthogonal matrix, so that an error shrinks by
    `radius` in each step: by no less if linear. The loss is the mean square of `y`.
    """

    batch: int
    radius: float
    linear: bool
    max_steps: int

    @functools.cached_property
    def args(self) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(0)
        q, r = np.linalg.qr(draw.standard_normal((SIZE, SIZE)))
        return {
            "matrix": self.radius * q * np.sign(np.diag(r)),
            "offset": draw.standard_normal((self.batch, SIZE)),
        }

    def fn(self, y: Any, args: Any) -> Any:
        value = y @ args["matrix"].T + args["offset"]
        return value if self.linear else jnp.tanh(value)

    @functools.cached_property
    def reference(self) -> Answer:
        """The implicit function theorem by dense algebra, a row at a time."""
        matrix, offset = self.args["matrix"], self.args["offset"]
        y = np.zeros_like(offset)
        # The distance to the solution ends below the last digit.
        for _ in range(2000):
            y = y @ matrix.T + offset
            y = y if self.linear else np.tanh(y)
        slope = np.ones_like(y) if self.linear else 1 - y**2
        systems = np.eye(SIZE) - slope[:, :, None] * matrix
        cotangents = (2 * y / y.size)[:, :, None]
        w = np.linalg.solve(systems.swapaxes(1, 2), cotangents)[:, :, 0] * slope
        gradient = {"matrix": w.T @ y, "offset": w}
        return named_arrays((np.mean(y**2), gradient))


@dataclasses.dataclass(frozen=True)
class Solver:
    """Somebody who solves a problem and can be differentiated.

    - `solve`: `(fn, y0, args, max_steps) -> y`, as a user writes it.
    """

    name: str
    solve: Callable[[Function, Any, Any, int], Any]
    required: bool = False

    def gradient(self, problem: Problem, fn: Function) -> Callable[[Any, Any], Any]:
        def loss(args, y0):
            return jnp.mean(self.solve(fn, y0, args, problem.max_steps) ** 2)

        return jax.value_and_grad(loss)

    def facts(self, problem: Problem) -> Facts:
        """What is called, from a run that is not timed."""

        def fn(y, args):
            return problem.fn(counted(y), args)

        with jax.enable_x64(True):
            function = self.gradient(problem, fn)
            _, found = run_counted(
                function, problem.args, np.zeros((problem.batch, SIZE))
            )
        return dataclasses.asdict(found)

    def program(self, problem: Problem) -> Program:
        return jax_program(
            self.gradient(problem, problem.fn),
            problem.args,
            np.zeros((problem.batch, SIZE)),
            facts=functools.partial(self.facts, problem),
            wide=True,
        )


def _parafix(words: str, required: bool = True, **options: Any) -> Solver:
    def solve(fn, y0, args, max_steps):
        return fixed_point(
            fn,
            y0,
            args,
            rtol=TOLERANCE,
            atol=TOLERANCE,
            max_steps=max_steps,
            **options,
        ).value

    return Solver(f"parafix {words}", solve, required)


def _optimistix(words: str, adjoint: optx.AbstractAdjoint) -> Solver:
    def solve(fn, y0, args, max_steps):
        solver = optx.FixedPointIteration(rtol=TOLERANCE, atol=TOLERANCE)
        return optx.fixed_point(
            fn, solver, y0, args, max_steps=max_steps, adjoint=adjoint
        ).value

    return Solver(f"Optimistix {words}", solve)


# Everybody iterates in the same way, so that the adjoints are what differs.
IMPLICIT = _parafix("implicit", solver="fixed-point")
UNROLLED = _parafix("unrolled", solver="fixed-point", adjoint="unrolled")
# What `fixed_point` does unasked; Anderson has a history to keep.
DEFAULT = _parafix("implicit, anderson")
OPTIMISTIX = _optimistix("ImplicitAdjoint", optx.ImplicitAdjoint())
# Matrix-free, for whoever knows to ask for it.
OPTIMISTIX_GMRES = _optimistix(
    "ImplicitAdjoint, GMRES",
    optx.ImplicitAdjoint(lx.GMRES(rtol=TOLERANCE, atol=TOLERANCE)),
)
CHECKPOINTED = _optimistix(
    "RecursiveCheckpointAdjoint", optx.RecursiveCheckpointAdjoint()
)


def _case(group: str, name: str, problem: Problem, solvers: tuple[Solver, ...]) -> Case:
    ours, *others = solvers
    return Case(
        group,
        name,
        [
            Contestant(
                solver.name, functools.partial(solver.program, problem), solver.required
            )
            for solver in solvers
        ],
        [Comparison(solver.name, ours.name) for solver in others],
        lambda: problem.reference,
        # Tolerances of 1e-9, and an error that is up to 50 times the residual.
        limit=1e-6,
    )


def cases(quick: bool) -> Iterator[Case]:
    for max_steps in STEPS[:2] if quick else STEPS:
        # So that the tolerance is reached just in time, a bit more than that.
        radius = (0.01 * TOLERANCE) ** (1 / max_steps)
        yield _case(
            ITERATED,
            f"max_steps={max_steps} n={SIZE}",
            Problem(1, radius, True, max_steps),
            (IMPLICIT, UNROLLED, OPTIMISTIX, OPTIMISTIX_GMRES, CHECKPOINTED),
        )
    batch = 4 if quick else BATCH
    yield _case(
        BATCHED,
        BATCH_NAME.format(batch),
        Problem(batch, 0.9, False, BATCH_STEPS),
        (IMPLICIT, DEFAULT, OPTIMISTIX, OPTIMISTIX_GMRES),
    )


TABLE = Table(
    "Temporary memory of gradients through a dense fixed point",
    "Value and gradient of the mean square of the fixed point of y W^T + x "
    "(iterations) or tanh(y W^T + x) (batch), in W and x, float64, n=30, with "
    "tolerances of 1e-9. W is a multiple of an orthogonal matrix: in iterations, the "
    "one with which plain iteration needs most of max_steps; in batch, .9. The state "
    "of batch is (64, 30), and one call of f takes all of it. Everybody iterates in "
    "the same way, except for anderson, which is what parafix does unasked. The "
    "ImplicitAdjoint of Optimistix has its default linear solver, which makes the "
    "Jacobian a matrix, unless GMRES is named. The memory is the peak that the "
    "compiled program needs beside its arguments and results, as XLA states it. "
    "Evaluations and products (JVPs and VJPs of one vector each) are counted in "
    "another run, forward and backward together. The reference is the implicit "
    "function theorem by dense algebra in NumPy.",
    cases,
    [
        constant_memory(ITERATED, IMPLICIT.name),
        *(
            share(BATCH_NAME.format(BATCH), ours.name, OPTIMISTIX.name, 0.1)
            for ours in (IMPLICIT, DEFAULT)
        ),
    ],
    jax_environment,
    # The memory is exact; the times stand beside it for orientation.
    Effort(repeats=5, patience=0),
)
