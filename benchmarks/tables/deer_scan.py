"""A GRU solved by parafix, by JAX's own loop, and by DEER as the paper has it."""

from collections.abc import Iterator

from ..gru import (
    contestants,
    FORWARD,
    GRADIENT,
    parafix_solver,
    Problem,
    SEQUENTIAL,
    TEXTBOOK,
    TEXTBOOK_FUSED,
)
from ..harness import Case, Comparison
from ..jax_programs import jax_environment
from ..table import faster, no_slower, Table


DEER = parafix_solver("parafix deer", solver="deer")
AUTO = parafix_solver("parafix auto")
SOLVERS = (SEQUENTIAL, AUTO, DEER, TEXTBOOK, TEXTBOOK_FUSED)

SIZES = (
    (16, 10_000, 2),
    (1, 10_000, 2),
    (1, 100_000, 1),
    (16, 1_000, 8),
    (16, 10_000, 8),
    (1, 10_000, 16),
)


def cases(quick: bool) -> Iterator[Case]:
    for batch, length, size in SIZES:
        length = length // 20 if quick else length
        problem = Problem(batch, length, size)
        for group in (FORWARD, GRADIENT):
            yield Case(
                group,
                f"B={batch} T={length} n={size}",
                contestants(problem, group, SOLVERS),
                (
                    Comparison(TEXTBOOK.name, DEER.name),
                    Comparison(TEXTBOOK_FUSED.name, DEER.name),
                    Comparison(AUTO.name, SEQUENTIAL.name),
                    Comparison(DEER.name, SEQUENTIAL.name),
                ),
                lambda problem=problem, group=group: (
                    problem.forward_reference
                    if group == FORWARD
                    else problem.gradient_reference
                ),
                # Some hundred times what float32 and a tolerance of 6e-6 leave.
                limit=1e-3 if group == GRADIENT else 1e-4,
            )


TABLE = Table(
    "DEER in JAX beside the sequential loop and a textbook DEER",
    "A GRU with 2 inputs over standard normal inputs, float32, weights uniform in "
    "±1/sqrt(n), zero initial states; the batch by vmap, and every solver under jit. "
    "The gradient is that of the mean square of all states in the weights and initial "
    "states. Textbook DEER is benchmarks/textbook.py: jacfwd under vmap, "
    "lax.associative_scan over dense blocks, stop on update size, at the tolerances of "
    "parafix; fused, it gets the value and the Jacobian of the step from one call "
    "instead of two. The reference is lax.scan in float64; the deviation is relative "
    "to the largest entry of the same array. Residuals are in units of the tolerance "
    "and measured by the harness; sweeps are those of the slowest sample.",
    cases,
    [
        target
        for group in (FORWARD, GRADIENT)
        for target in (
            faster(group, TEXTBOOK.name, DEER.name, 2.5),
            faster(group, TEXTBOOK_FUSED.name, DEER.name, 2.5),
            no_slower(group, AUTO.name, SEQUENTIAL.name, 1.1),
        )
    ],
    jax_environment,
)
