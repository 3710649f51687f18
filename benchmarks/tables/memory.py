"""Temporary memory of value-and-gradient."""

from collections.abc import Iterator

from ..gru import contestants, GRADIENT, parafix_solver, Problem, SEQUENTIAL
from ..harness import Case, Comparison, Effort
from ..jax_programs import jax_environment
from ..table import lighter, Table


WHOLE = parafix_solver("deer, window=None", solver="deer")
WINDOWS = parafix_solver("deer, window=64", solver="deer", window=64)
LENGTH = 16_384
NAME = "T={} n=64"


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
        lambda: problem.gradient_reference,
        limit=1e-3,
    )


TABLE = Table(
    "Temporary memory of value-and-gradient",
    "The GRU of deer-scan, one sequence without vmap. The memory is the peak that the "
    "compiled program needs beside its arguments and results, as XLA states it.",
    cases,
    [lighter(NAME.format(LENGTH), WINDOWS.name, 20)],
    jax_environment,
    # The memory is exact; the times stand beside it for orientation.
    Effort(repeats=5, patience=0),
)
