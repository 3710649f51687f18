from typing import Any

import equinox as eqx
from jaxtyping import ArrayLike

from ._causal import AbstractCausalSweep
from ._check import checked_tolerance
from ._foreign import as_measured, FOREIGN
from ._iteration import AbstractDense
from ._named import named
from ._sweep import AbstractSweep


class Sequential(eqx.Module):
    """One step after the other, by the framework's own loop.

    Stands where a solver is asked for. There is nothing to converge, so the tolerances
    only set the unit in which a residual is reported.
    """

    rtol: ArrayLike
    atol: ArrayLike

    def __check_init__(self):
        checked_tolerance("rtol", self.rtol, None)
        checked_tolerance("atol", self.atol, None)


def as_solver(solver: Any, rtol: Any, atol: Any, default: ArrayLike = 0.0) -> Any:
    """The solver that `solver` names, built from the tolerances, or `solver` itself."""
    if isinstance(solver, str):
        target = named("solver", solver)
        return target(
            rtol=checked_tolerance("rtol", rtol, default),
            atol=checked_tolerance("atol", atol, default),
        )
    if not isinstance(solver, (Sequential, AbstractCausalSweep, *FOREIGN)):
        raise TypeError(
            "`solver` must be the name of a registered rootfinder or a solver object "
            f"such as `Newton(rtol=..., atol=...)`, got {solver!r}."
        )
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None:
            raise ValueError(
                f"`{name}` was given and so was a solver object, which has its own: "
                f"set `{name}` on the solver."
            )
    return solver


def as_sweep(
    solver: Any, rtol: Any, atol: Any, default: ArrayLike = 0.0
) -> AbstractSweep | Sequential:
    """As `as_solver`, for a chain."""
    solver = as_solver(solver, rtol, atol, default)
    if not isinstance(solver, AbstractSweep | Sequential):
        raise TypeError(
            f"{type(solver).__name__} solves dense problems; a chain needs a sweep: "
            '"deer", "jacobi" or "sequential".'
        )
    return solver


def as_causal(
    solver: Any, rtol: Any, atol: Any, default: ArrayLike = 0.0
) -> AbstractCausalSweep | Sequential:
    """As `as_solver`, for a causal problem."""
    solver = as_solver(solver, rtol, atol, default)
    if not isinstance(solver, AbstractCausalSweep | Sequential):
        raise TypeError(
            f"{type(solver).__name__} does not solve causal problems, which are known "
            'by their whole map alone: "jacobi" and "sequential" do. A recurrence that '
            "has a step is a chain: `solve_chain`."
        )
    return solver


def as_dense(
    solver: Any, rtol: Any, atol: Any, default: ArrayLike = 0.0
) -> AbstractDense:
    """As `as_solver`, for a dense problem."""
    solver = as_solver(solver, rtol, atol, default)
    if isinstance(solver, AbstractSweep | AbstractCausalSweep | Sequential):
        raise TypeError(
            f"{type(solver).__name__} solves recurrences; a dense problem needs a "
            'rootfinder for dense problems: "anderson", "broyden", "newton".'
        )
    return as_measured(solver)
