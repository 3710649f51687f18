"""`solver="auto"` on the grid of the DEER paper, and whether anybody beats it."""

from collections.abc import Iterable, Iterator

from ..gru import (
    contestants,
    FORWARD,
    GRADIENT,
    parafix_solver,
    Problem,
    SEQUENTIAL,
    TEXTBOOK_FUSED,
)
from ..harness import Case, Comparison
from ..jax_programs import jax_environment
from ..table import Table, unbeaten


BATCH = 16
SIZES = (1, 2, 4, 8, 16, 32, 64)
# Another name for the same program: how far apart two of its medians are is noise.
AGAIN = SEQUENTIAL._replace(name="lax.scan, again")
AUTO = parafix_solver("parafix auto")
DEER = parafix_solver("parafix deer", solver="deer")
QUASI = parafix_solver("parafix quasi-deer", solver="quasi-deer")
JACOBI = parafix_solver("parafix jacobi", solver="jacobi")
# Who it may be beaten by, and with how many numbers (times and samples and entries of
# what it forms at each) it may enter: beyond them it takes minutes, or all memory.
OTHERS = (
    (DEER, lambda rows, size: rows * size**2 <= 2e8),
    (QUASI, lambda rows, size: rows * size**2 <= 2e8),
    (JACOBI, lambda rows, size: rows * size <= 2e7),
    (TEXTBOOK_FUSED, lambda rows, size: rows * size**2 <= 5e7),
)


def _cases(lengths: Iterable[int], sizes: Iterable[int]) -> Iterator[Case]:
    for length in lengths:
        for size in sizes:
            problem = Problem(BATCH, length, size)
            rows = BATCH * length
            others = [solver for solver, pays in OTHERS if pays(rows, size)]
            for group in (FORWARD, GRADIENT):
                yield Case(
                    group,
                    f"B={BATCH} T={length} n={size}",
                    contestants(problem, group, (AUTO, SEQUENTIAL, AGAIN, *others)),
                    [
                        Comparison(AGAIN.name, SEQUENTIAL.name),
                        *(
                            Comparison(AUTO.name, solver.name)
                            for solver in (SEQUENTIAL, *others)
                        ),
                    ],
                    lambda problem=problem, group=group: (
                        problem.forward_reference
                        if group == FORWARD
                        else problem.gradient_reference
                    ),
                    limit=1e-3 if group == GRADIENT else 1e-4,
                )


def cases(quick: bool) -> Iterator[Case]:
    if quick:
        return _cases((500,), (2, 32))
    return _cases((1_000, 10_000), SIZES)


def full() -> Iterator[Case]:
    return _cases((1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000), SIZES)


TABLE = Table(
    'The automatic choice in JAX: solver="auto"',
    "The GRU of deer-scan with B=16. lax.scan enters twice: how far apart its two "
    "copies are is the noise of a case. The other solvers of parafix and the textbook "
    "enter where they take less than minutes and fit into memory.",
    cases,
    [
        unbeaten(
            group,
            AUTO.name,
            [SEQUENTIAL.name, *(solver.name for solver, _ in OTHERS)],
            (AGAIN.name, SEQUENTIAL.name),
        )
        for group in (FORWARD, GRADIENT)
    ],
    jax_environment,
    full=full,
)
