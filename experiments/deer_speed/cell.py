"""One cell of the grid: compiled programs, which serve every draw of the numbers."""

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gru import FORWARD, INPUTS, Problem, SEQUENTIAL, Solver, Weights
from benchmarks.harness import Answer, Contestant, Facts, Program
from benchmarks.jax_programs import in_float64, named_arrays
from benchmarks.verdicts import worst_result


GIB = 2**30


class NotRun(Exception):
    """A program needs more memory than it may have."""


def needs(size: float) -> str:
    return f"needs {size / GIB:.3g} GiB"


class _Compiled(NamedTuple):
    function: Callable[..., Any]
    fingerprint: str
    bytes_needed: int
    temporary_bytes: int


class Cell:
    """`lax.scan` and parafix for one group (forward, gradient), length and size.

    - `limit`: bytes that a program may need, arguments and results included.
    """

    def __init__(self, group: str, batch: int, length: int, size: int, limit: float):
        self.group = group
        self.limit = limit
        self.sizes = (batch, length, size)
        self.example = Problem(batch, length, size)

    def contestant(self, solver: Solver, problem: Problem) -> Contestant:
        return Contestant(
            solver.name, functools.partial(self._program, solver, problem)
        )

    def reference(self, problem: Problem) -> Answer:
        """`lax.scan` in float64 if that fits, else in the float32 of all others."""
        function = self._function(SEQUENTIAL)
        if self.precision == "float64":
            return named_arrays(in_float64(function, *problem.arguments))
        return named_arrays(self._compiled(SEQUENTIAL).function(*problem.arguments))

    @functools.cached_property
    def precision(self) -> str:
        wide = 2 * self._compiled(SEQUENTIAL).bytes_needed
        return "float64" if wide <= self.limit else "float32"

    @functools.cached_property
    def reason(self) -> str:
        """Why not even `lax.scan` is run here, if it is not."""
        # To compare, the reference, the answer and their difference stand in float64.
        checking = 32 * math.prod(self.sizes) if self.group == FORWARD else 0
        needed = self._compiled(SEQUENTIAL).bytes_needed + checking
        return needs(needed) if needed > self.limit else ""

    def _program(self, solver, problem) -> Program:
        found = self._compiled(solver)
        if found.bytes_needed > self.limit:
            raise NotRun(needs(found.bytes_needed))
        arguments = jax.device_put(problem.arguments)
        return Program(
            run=lambda: found.function(*arguments),
            wait=jax.block_until_ready,
            answer=named_arrays,
            facts=functools.partial(self._facts, solver, arguments),
            temporary_bytes=found.temporary_bytes,
            fingerprint=found.fingerprint,
        )

    @functools.cache  # noqa: B019 (a cell lives as long as it is measured)
    def _function(self, solver: Solver) -> Callable[..., Any]:
        forward = self.group == FORWARD
        return (self.example.forward if forward else self.example.gradient)(solver)

    @functools.cache  # noqa: B019
    def _compiled(self, solver: Solver) -> _Compiled:
        """From shapes alone: what is needed is known before there is any data."""

        # One name for all: it is part of the text, and so of the fingerprint.
        def program(*arguments):
            return self._function(solver)(*arguments)

        lowered = jax.jit(program).lower(*self._shapes())
        function = lowered.compile()
        analysis = function.memory_analysis()
        fixed, temporary = 0, 0
        if analysis is not None:
            fixed = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
            temporary = analysis.temp_size_in_bytes
        text = hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]
        return _Compiled(function, text, int(fixed + temporary), int(temporary))

    def _shapes(self):
        batch, length, size = self.sizes
        shapes = (
            Weights((3 * size, INPUTS), (3 * size, size), (3 * size,), (3 * size,)),
            (batch, size),
            (batch, length, INPUTS),
        )
        return jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
            shapes,
            is_leaf=lambda x: type(x) is tuple and all(isinstance(n, int) for n in x),
        )

    def _facts(self, solver, arguments) -> Facts:
        """Sweeps of the slowest sample and the result code, of a run not timed."""
        if solver is SEQUENTIAL or self.group != FORWARD:
            return {}
        sweeps, codes = self._informed(solver)(*arguments)
        facts: dict[str, float | int | str] = {"result": worst_result(codes)}
        if sweeps is not None:
            facts["sweeps"] = int(np.max(sweeps))
        return facts

    @functools.cache  # noqa: B019
    def _informed(self, solver: Solver) -> Callable[..., Any]:
        function = self.example.batched(solver.informed)
        return jax.jit(lambda *arguments: function(*arguments)[1:])
