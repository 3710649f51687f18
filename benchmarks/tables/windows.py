"""What windows cost and gain."""

from collections.abc import Iterator

from ..gru import contestants, FORWARD, GRADIENT, parafix_solver, Problem, SEQUENTIAL
from ..harness import Case, Comparison
from ..jax_programs import jax_environment
from ..table import Table


WHOLE = parafix_solver("deer, window=None", solver="deer")
WINDOWS = tuple(
    parafix_solver(f"deer, window={window}", solver="deer", window=window)
    for window in (100, 1_000)
)
SIZES = ((16, 10_000, 8), (1, 10_000, 16))


def cases(quick: bool) -> Iterator[Case]:
    for batch, length, size in SIZES:
        length = length // 5 if quick else length
        problem = Problem(batch, length, size)
        for group in (FORWARD, GRADIENT):
            yield Case(
                group,
                f"B={batch} T={length} n={size}",
                contestants(problem, group, (WHOLE, *WINDOWS, SEQUENTIAL)),
                [Comparison(WHOLE.name, solver.name) for solver in WINDOWS],
                lambda problem=problem, group=group: (
                    problem.forward_reference
                    if group == FORWARD
                    else problem.gradient_reference
                ),
                limit=1e-3 if group == GRADIENT else 1e-4,
            )


TABLE = Table(
    "Windows of DEER in JAX",
    "The GRU of deer-scan. Every window is solved to the end before the next begins; "
    "sweeps are summed over windows, so divide by their number to compare.",
    cases,
    [],
    jax_environment,
)
