"""A drop-in for `diffrax.diffeqsolve` on fixed grids."""

import dataclasses
from typing import Any

import diffrax
from jaxtyping import ArrayLike, PyTree

from parafix.core.jax import (
    AbstractStructure,
    AbstractSweep,
    as_sweep,
    ChainAdjoint,
    checked_count,
    Sequential,
)

from ._ode_grid import checked_controller, length_of
from ._ode_guess import checked_name
from ._ode_loop import ParallelInTime
from ._scan import checked_structure


_AT_THE_END = diffrax.SaveAt(t1=True)
_CONSTANT = diffrax.ConstantStepSize()
_NO_METER = diffrax.NoProgressMeter()


def diffeqsolve(
    terms: PyTree[diffrax.AbstractTerm],
    solver: diffrax.AbstractSolver,
    t0: ArrayLike,
    t1: ArrayLike,
    dt0: ArrayLike | None,
    y0: PyTree[ArrayLike],
    args: PyTree[Any] = None,
    *,
    saveat: diffrax.SaveAt = _AT_THE_END,
    stepsize_controller: diffrax.AbstractStepSizeController = _CONSTANT,
    adjoint: diffrax.AbstractAdjoint | ChainAdjoint | str | None = None,
    event: diffrax.Event | None = None,
    max_steps: int | None = None,
    throw: bool = True,
    progress_meter: diffrax.AbstractProgressMeter = _NO_METER,
    solver_state: PyTree[ArrayLike] | None = None,
    controller_state: PyTree[ArrayLike] | None = None,
    made_jump: ArrayLike | None = None,
    root_finder: str | AbstractSweep | Sequential = "deer",
    window: int | None = None,
    guess: str | PyTree[ArrayLike] | diffrax.Solution = "coarse",
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_sweeps: int | None = None,
    fallback: str | None = None,
    patience: int | None = None,
    structure: AbstractStructure | None = None,
) -> diffrax.Solution:
    """A drop-in for `diffrax.diffeqsolve` that takes all steps of a grid at once.

    !!! example

        ```python
        import diffrax
        from parafix.deer.jax import diffeqsolve

        term = diffrax.ODETerm(lambda t, y, args: -args * y)
        sol = diffrax.diffeqsolve(term, diffrax.Tsit5(), 0, 10, 0.01, y0, args)
        sol = diffeqsolve(term, diffrax.Tsit5(), 0, 10, 0.01, y0, args)
        ```

    Any Diffrax solver is the step of a chain, whose `N` states are found together by a
    few parallel sweeps: those that Diffrax computes one after the other, on the same
    grid, to within `rtol` and `atol`. Everything around the loop over the steps is
    Diffrax's own. Derivatives are those of the discrete solution, forward and reverse,
    to any order; `jit` and `vmap` work as there.

    **Arguments:**

    - `terms`, `solver`, `t0`, `t1`, `dt0`, `y0`, `args`: as in `diffrax.diffeqsolve`.
        With `ConstantStepSize` the first three times say how many steps there are, so
        they may be differentiated but not traced by `jit` or `vmap`. An implicit
        solver needs tolerances of its own, as in Diffrax on a fixed grid, and tight
        ones: with loose ones a step is no smooth function of its state.
    - `saveat`: as there, all of it.
    - `stepsize_controller`: a `diffrax.ConstantStepSize` or a `diffrax.StepTo`, whose
        times may be traced.
    - `adjoint`: `RecursiveCheckpointAdjoint`, `DirectAdjoint` and `ForwardMode` of
        Diffrax mean derivatives of the discrete solution, which is what there is; so
        do `None`, `"implicit"` and a [`parafix.core.jax.ChainAdjoint`][], as in
        [`parafix.deer.jax.scan`][].
    - `event`, `progress_meter`: of steps that are taken one after the other; an error.
    - `max_steps`: at most so many time steps. With a number, what is saved at `steps`
        and by `dense` is padded to it as in Diffrax. `None`, the default, is as many as
        the grid has, without padding.
    - `throw`: whether a failure raises, also under `jit` and when only a gradient is
        asked for.
    - `solver_state`, `controller_state`, `made_jump`: as there. A Runge-Kutta method
        computes its state again from `y0`.
    - `root_finder`: what finds the states: the `solver` of [`parafix.deer.jax.scan`][].
        `"sequential"` takes one step after the other, `"auto"` the faster of both.
    - `window`: solve this many steps to the end before going on to the next; bounds
        memory.
    - `guess`: where the sweeps start. `"coarse"`: a solve by steps ten times as long,
        one after the other, interpolated; `y0` where that is unstable. `"constant"`:
        `y0` at all times. `"step"`: what one step from `y0` leads to. Or states at all
        `N` times after `t0`, a pytree like `y0` with a leading axis; or an earlier
        `diffrax.Solution` that is dense or has steps. Its gradient is zero.
    - `rtol`, `atol`: how well the states solve the equations of the steps, by default
        `eps^(3/4)` of the dtype. The error of the discretisation is another matter.
    - `max_sweeps`: at most this many sweeps; `N`, which always is enough, by default.
    - `fallback`, `patience`, `structure`: as in [`parafix.deer.jax.scan`][]; the carry
        is `y`, followed by the state of a solver that remembers more than `y`
        (`ReversibleHeun`, `LeapfrogMidpoint`).

    **Returns:**

    A `diffrax.Solution`. `result` is a member of `diffrax.RESULTS`; `stats["result"]`
    one of [`parafix.core.jax.RESULTS`][]. Beside Diffrax's own, `stats` has what a
    [`parafix.core.jax.Solution`][] tells: `num_sweeps` (there `num_steps`), `num_evals`
    (of the step, each at all times), `num_linear`, `residual`, `converged_prefix`,
    `error_estimate`, `lyapunov_exponent` and `sequential_from`. Of a sequential solve
    most are unknown, which is NaN.

    **Raises:**

    `ValueError` or `TypeError` for arguments that do not fit, among them adaptive
    step sizes and events, with what to use instead; where a solve fails and `throw` is
    true, the sentence of the result (an `equinox.EquinoxRuntimeError`). A solution that
    is not finite is a failure, unless the solve is sequential, as in Diffrax. If the
    implicit equation of a step is not solved, the result is Diffrax's, whatever else
    went well, and the states from there on are NaN; the gradient is that of those
    before.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024. One-step maps as the chain and a coarse solve
        as the guess: as in Lions, Maday and Turinici, "A parareal in time
        discretization of PDEs", C. R. Acad. Sci. 2001.
    """
    _check(solver, saveat, event, progress_meter)
    checked_controller(stepsize_controller)
    max_steps = checked_count("max_steps", max_steps)
    checked_count("window", window)
    max_sweeps = checked_count("max_sweeps", max_sweeps)
    if not (isinstance(root_finder, str) and root_finder == "auto"):
        as_sweep(root_finder, rtol, atol)
    if structure is not None:
        checked_structure(structure)
    checked_name(guess)
    length = length_of(stepsize_controller, t0, t1, dt0, saveat)
    if max_steps is not None and length > max_steps:
        raise ValueError(
            f"The grid has {length} steps, which is more than max_steps={max_steps}. "
            "Leave `max_steps` out: it is known here how many there are."
        )
    loop = ParallelInTime(
        length,
        guess,
        {
            "solver": root_finder,
            "rtol": rtol,
            "atol": atol,
            "max_steps": max_sweeps,
            "window": window,
            "structure": structure,
            "fallback": fallback,
            "patience": patience,
            "adjoint": _chain_adjoint(adjoint),
        },
    )
    # Its own types of times and of flags have no public names.
    solve: Any = diffrax.diffeqsolve
    solution = solve(
        terms,
        solver,
        t0,
        t1,
        dt0,
        y0,
        args,
        saveat=saveat,
        stepsize_controller=stepsize_controller,
        adjoint=loop,
        max_steps=max(length, 1) if max_steps is None else max_steps,
        throw=throw,
        solver_state=solver_state,
        controller_state=controller_state,
        made_jump=made_jump,
    )
    stats = {**solution.stats, "max_steps": max_steps}
    return dataclasses.replace(solution, stats=stats)


def _check(solver, saveat, event, progress_meter):
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(
            f"`solver` must be a solver of Diffrax, got {solver!r}. What finds the "
            "states of all steps is `root_finder`."
        )
    if not isinstance(saveat, diffrax.SaveAt):
        raise TypeError(f"`saveat` must be a `diffrax.SaveAt`, got {saveat!r}.")
    if event is not None:
        raise ValueError(
            "`event` ends a solve at a step, but all steps are taken at once. Solve to "
            "the end and look for the event in `SaveAt(steps=True)`, or use "
            "`diffrax.diffeqsolve`."
        )
    if not isinstance(progress_meter, diffrax.NoProgressMeter):
        raise ValueError(
            "`progress_meter` follows steps one after the other, but all steps are "
            "taken at once. Leave it out."
        )


def _chain_adjoint(adjoint):
    """The `adjoint` of `scan` that means the same."""
    same = (
        diffrax.RecursiveCheckpointAdjoint | diffrax.DirectAdjoint | diffrax.ForwardMode
    )
    if isinstance(adjoint, same):
        return None
    if adjoint is None or isinstance(adjoint, ChainAdjoint) or adjoint == "implicit":
        return adjoint
    if isinstance(adjoint, diffrax.AbstractAdjoint):
        raise ValueError(
            f"`adjoint={type(adjoint).__name__}(...)` has other derivatives than those "
            "of the discrete solution, which are the ones there are. Leave it out, or "
            "use `diffrax.diffeqsolve`."
        )
    raise TypeError(
        '`adjoint` must be None, "implicit", a `ChainAdjoint`, or '
        "`RecursiveCheckpointAdjoint`, `DirectAdjoint` or `ForwardMode` of Diffrax, "
        f"got {adjoint!r}."
    )
