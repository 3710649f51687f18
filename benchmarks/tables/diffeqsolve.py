"""Differential equations on a grid: Diffrax's loop, and all steps at once."""

from collections.abc import Iterator

from ..gru import FORWARD, GRADIENT
from ..harness import Case, Comparison
from ..jax_programs import jax_environment
from ..odes import AUTO, CONSTANT, contestants, DEER, DIFFRAX, DIRECT, Problem
from ..table import solved, Table


# Name of the equation, batch sizes, numbers of steps.
GRID = (
    ("FitzHugh-Nagumo, Tsit5", (1, 16), (1_000, 10_000)),
    ("neural ODE 4-32-4, Heun", (1, 16), (1_000, 10_000)),
    ("van der Pol mu=5, Dopri5", (1,), (1_000, 10_000)),
    ("van der Pol mu=1000, Kvaerno3", (1,), (1_000,)),
    ("Robertson, Kvaerno5", (1,), (1_000,)),
    ("noisy Lotka-Volterra, EulerHeun", (1,), (1_000,)),
)


def cases(quick: bool) -> Iterator[Case]:
    for name, batches, lengths in GRID:
        for length in lengths[:1] if quick else lengths:
            for batch in batches[:1] if quick else batches:
                problem = Problem(name, batch, length // 10 if quick else length)
                for group in (FORWARD, GRADIENT):
                    yield _case(group, problem)


def _case(group, problem):
    ours = (DEER, CONSTANT, AUTO)
    theirs = (DIFFRAX,) if group == FORWARD else (DIFFRAX, DIRECT)
    return Case(
        group,
        f"{problem.name} B={problem.batch} T={problem.length}",
        contestants(problem, group, (*theirs, *ours)),
        [Comparison(one.name, other.name) for one in theirs for other in ours],
        lambda: problem.references[group],
        limit=1e-8,
    )


TABLE = Table(
    "Differential equations in JAX: parafix.deer.jax.diffeqsolve",
    "The same call with the function of Diffrax and with that of parafix, on the same "
    "grid, saved at all steps; float64. The reference are Diffrax's own numbers: to "
    "give them is what is asked for. A ratio is the time of Diffrax over that of "
    "parafix. The gradient is that of the mean square of all states in the parameters "
    'and the initial state. "from y0" has no coarse solve as its guess.',
    cases,
    [solved([DEER.name, AUTO.name])],
    jax_environment,
)
