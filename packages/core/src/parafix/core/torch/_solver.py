import dataclasses
from typing import Any

from torch import Tensor

from ._causal import AbstractCausalSweep
from ._check import checked_tolerance
from ._iteration import AbstractIteration
from ._named import named
from ._sweep import AbstractSweep


@dataclasses.dataclass(frozen=True)
class Sequential:
    """One step after the other, by a plain loop.

    Stands where a solver is asked for. There is nothing to converge, so the tolerances
    only set the unit in which a residual is reported.
    """

    rtol: float | Tensor
    atol: float | Tensor

    def __post_init__(self) -> None:
        checked_tolerance("rtol", self.rtol, None)
        checked_tolerance("atol", self.atol, None)


def as_solver(solver: Any, rtol: Any, atol: Any, default: Any = 0.0) -> Any:
    """The solver that `solver` names, built from the tolerances, or `solver` itself."""
    if isinstance(solver, str):
        return named("solver", solver)(
            rtol=checked_tolerance("rtol", rtol, default),
            atol=checked_tolerance("atol", atol, default),
        )
    kinds = AbstractIteration | AbstractSweep | AbstractCausalSweep | Sequential
    if not isinstance(solver, kinds):
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
    solver: Any, rtol: Any, atol: Any, default: Any = 0.0
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
    solver: Any, rtol: Any, atol: Any, default: Any = 0.0
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
    solver: Any, rtol: Any, atol: Any, default: Any = 0.0
) -> AbstractIteration:
    """As `as_solver`, for a dense problem."""
    solver = as_solver(solver, rtol, atol, default)
    if not isinstance(solver, AbstractIteration):
        raise TypeError(
            f"{type(solver).__name__} solves recurrences; a dense problem needs a "
            'rootfinder for dense problems, such as "anderson", "broyden" or "newton".'
        )
    return solver
