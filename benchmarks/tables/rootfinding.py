"""Dense fixed points by parafix, by jaxopt, and by Optimistix."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from parafix.core.jax import Broyden, fixed_point
from parafix.core.testing.jax import DenseProblem, zoo

from ..counting import counted, run_counted
from ..harness import Answer, Case, Comparison, Contestant, Facts, Program
from ..jax_programs import in_float64, jax_environment, jax_program
from ..table import solved, Table
from ..verdicts import codes_of, worst_result


TOLERANCE = 1e-9
MAX_STEPS = 1000
# What peers are tried with, from loose to tight.
TOLERANCES = [10 ** (-4 - step / 4) for step in range(41)]

Function = Callable[[Any, Any], Any]


def residual(problem: DenseProblem, y: Any) -> np.ndarray:
    """`(f(y) - y) / (atol + rtol |y|)` in float64: at most 1 is within tolerance.

    Measured here, in the same way for everybody, and not what a solver says of itself.
    """
    y = np.asarray(y, np.float64)
    value = in_float64(problem.fn, y, problem.args)
    return (value - y) / (TOLERANCE * (1 + np.abs(y)))


@dataclasses.dataclass(frozen=True)
class Solver:
    """Somebody who finds fixed points.

    - `solve`: `(fn, y0, args, tolerance) -> (y, codes)`; the codes are those of
        parafix, and `None` for everybody else. Must not raise for a solve that failed.
    - `tuned`: whether the tolerance is sought: for those that do not stop by the
        residual that the harness measures.
    """

    name: str
    solve: Callable[[Function, Any, Any, Any], tuple[Any, Any]]
    tuned: bool = True
    required: bool = False

    def tolerance(self, problem: DenseProblem) -> float:
        """The loosest with which the residual is within the tolerance of the table.

        If there is none, the one with which it comes closest.
        """
        if not self.tuned:
            return TOLERANCE
        function = jax.jit(functools.partial(self.solve, problem.fn))
        best, lowest = TOLERANCES[0], np.inf
        for tolerance in TOLERANCES:
            with jax.enable_x64(True):
                y, _ = function(problem.y0, problem.args, tolerance)
            found = np.max(np.abs(residual(problem, y)))
            if found <= 1:
                return tolerance
            if found < lowest:
                best, lowest = tolerance, found
        return best

    def facts(self, problem: DenseProblem, tolerance: float) -> Facts:
        """What is called, and the result code, from a run that is not timed."""

        def fn(y, args):
            return problem.fn(counted(y), args)

        def solve(y0, args):
            return self.solve(fn, y0, args, tolerance)

        with jax.enable_x64(True):
            (_, codes), found = run_counted(solve, problem.y0, problem.args)
        facts: dict[str, float | int | str] = {
            "evaluations": found.evaluations,
            "products": found.products,
            "tolerance": tolerance,
        }
        if codes is not None:
            facts["result"] = worst_result(codes)
        return facts

    def program(self, problem: DenseProblem) -> Program:
        tolerance = self.tolerance(problem)

        def solve(y0, args):
            return self.solve(problem.fn, y0, args, tolerance)

        def answer(output) -> Answer:
            y, _ = output
            return {"residual": residual(problem, y)}

        return jax_program(
            solve,
            problem.y0,
            problem.args,
            facts=functools.partial(self.facts, problem, tolerance),
            answer=answer,
            wide=True,
        )


def parafix_solver(name: str, make: Callable[..., Any] | None = None) -> Solver:
    """`parafix.core.jax.fixed_point` with a registered solver, or with `make(...)`."""

    def solve(fn, y0, args, tolerance):
        options = {"rtol": tolerance, "atol": tolerance}
        # A solver has its own tolerances; a name gets those of the call.
        chosen = {"solver": name, **options}
        if make is not None:
            chosen = {"solver": make(**options)}
        solution = fixed_point(fn, y0, args, **chosen, max_steps=MAX_STEPS, throw=False)
        return solution.value, codes_of(solution.result)

    return Solver(f"parafix {name}", solve, tuned=False, required=True)


def optimistix_solver(make: Callable[..., Any]) -> Solver:
    def solve(fn, y0, args, tolerance):
        solver = make(rtol=tolerance, atol=tolerance)
        solution = optx.fixed_point(
            fn, solver, y0, args, max_steps=MAX_STEPS, throw=False
        )
        return solution.value, None

    return Solver(f"Optimistix {make.__name__}", solve)


def jaxopt_solver(name: str, words: str = "", **options: Any) -> Solver:
    def solve(fn, y0, args, tolerance):
        with warnings.catch_warnings():
            # It announces that it is no longer maintained.
            warnings.simplefilter("ignore", DeprecationWarning)
            import jaxopt
        limits = {"maxiter": MAX_STEPS, "tol": tolerance}
        if name == "Broyden":
            # The sign matters: it begins as if the Jacobian were the identity.
            solver = jaxopt.Broyden(
                lambda y, args: y - fn(y, args), **limits, **options
            )
        else:
            solver = getattr(jaxopt, name)(fn, **limits, **options)
        return solver.run(y0, args).params, None

    return Solver(f"jaxopt {name}{words}", solve)


FIXED_POINT = parafix_solver("fixed-point")
ANDERSON = parafix_solver("anderson")
BROYDEN = parafix_solver("broyden")
# More than any problem here needs, so that nothing is forgotten.
BROYDEN_100 = parafix_solver(
    "broyden, memory=100", functools.partial(Broyden, memory=100)
)
NEWTON = parafix_solver("newton")
NEWTON_KRYLOV = parafix_solver("newton-krylov")

JAXOPT_FIXED_POINT = jaxopt_solver("FixedPointIteration")
JAXOPT_ANDERSON = jaxopt_solver("AndersonAcceleration")
# As many iterates as parafix keeps, and the ridge that was found to serve it best.
JAXOPT_ANDERSON_10 = jaxopt_solver(
    "AndersonAcceleration", ", m=10", history_size=10, ridge=1e-20
)
JAXOPT_BROYDEN = jaxopt_solver("Broyden")
# Without a line search, as parafix, and with as much memory.
JAXOPT_BROYDEN_20, JAXOPT_BROYDEN_100 = (
    jaxopt_solver("Broyden", f", full steps, m={m}", stepsize=1.0, history_size=m)
    for m in (20, 100)
)
OPTIMISTIX_FIXED_POINT = optimistix_solver(optx.FixedPointIteration)
OPTIMISTIX_NEWTON = optimistix_solver(optx.Newton)
OPTIMISTIX_CHORD = optimistix_solver(optx.Chord)

# Theirs and ours of one method; at the end, what either has that needs no choice.
PAIRS = (
    (JAXOPT_FIXED_POINT, FIXED_POINT),
    (OPTIMISTIX_FIXED_POINT, FIXED_POINT),
    (JAXOPT_ANDERSON, ANDERSON),
    (JAXOPT_ANDERSON_10, ANDERSON),
    (JAXOPT_BROYDEN, BROYDEN),
    (JAXOPT_BROYDEN_20, BROYDEN),
    (JAXOPT_BROYDEN_100, BROYDEN_100),
    (OPTIMISTIX_NEWTON, NEWTON),
    (OPTIMISTIX_CHORD, NEWTON),
    (OPTIMISTIX_FIXED_POINT, ANDERSON),
)
SOLVERS = (
    *(FIXED_POINT, ANDERSON, BROYDEN, BROYDEN_100, NEWTON, NEWTON_KRYLOV),
    *dict.fromkeys(theirs for theirs, _ in PAIRS),
)

PROBLEMS = ("symmetric", "orthogonal", "rotations", "wide", "tanh")


def cases(quick: bool) -> Iterator[Case]:
    size = 12 if quick else 50
    for name in ("wide", "tanh") if quick else PROBLEMS:
        with jax.enable_x64(True):
            problem = zoo(name, size=size, dtype=jnp.float64)
        yield Case(
            "fixed point",
            f"{name} n={size}",
            [
                Contestant(
                    solver.name,
                    functools.partial(solver.program, problem),
                    solver.required and _made_for(solver, problem),
                )
                for solver in SOLVERS
            ],
            [Comparison(theirs.name, ours.name) for theirs, ours in PAIRS],
            functools.partial(_zeros, size),
            limit=1.0,
            measure="residual",
        )


def _made_for(solver: Solver, problem: DenseProblem) -> bool:
    return solver is not FIXED_POINT or problem.kind == "contractive"


def _zeros(size: int) -> Answer:
    # Where there are several fixed points, each is right.
    return {"residual": np.zeros(size)}


TABLE = Table(
    "Dense fixed points in JAX beside jaxopt and Optimistix",
    "One sample of float64, from zero, seed 0 of the problems of "
    "parafix.core.testing.jax.zoo: symmetric has its spectrum in [-.9, .9]; orthogonal "
    "and rotations have all eigenvalues of size .95; wide has its spectrum in [-3, .5] "
    "and makes plain iteration grow; tanh is a layer with gain 1.1. The residual is "
    f"max |f(y) - y| / ({TOLERANCE:g} (1 + |y|)) of what is returned; above 1 a row is "
    "wrong. parafix is asked for this tolerance. Every peer gets the loosest of "
    f"{len(TOLERANCES)} from {TOLERANCES[0]:g} to {TOLERANCES[-1]:g} with which its "
    f"residual is at most 1, and the best if there is none. All may take {MAX_STEPS} "
    "steps, and none throws. Evaluations are calls of f, products are JVPs and VJPs of "
    "one vector each (a dense Jacobian is n of them); both are counted in another run, "
    "in the same way for everybody. jaxopt's solvers are taken as they come, and with "
    "the history of parafix (m); full steps means without its line search. A method "
    "that cannot solve a problem is a finding, and no error.",
    cases,
    [solved([x.name for x in (ANDERSON, BROYDEN, NEWTON, NEWTON_KRYLOV)])],
    jax_environment,
)
