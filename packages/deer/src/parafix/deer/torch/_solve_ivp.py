from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from parafix.core.torch import (
    AbstractStructure,
    AbstractSweep,
    ChainAdjoint,
    Custom,
    Sequential,
    Solution,
    structure_of,
)

from ._auto import choose, PATIENCE
from ._coarse import coarse
from ._eager import out_of_graphs
from ._job import Job, MixedSamplesError, sweeps_serve
from ._one_step import AbstractOneStep, as_one_step
from ._scan import checked_structure, scan
from ._steps import checked_state, checked_times, mapped, Steps


_GUESSES = ("coarse", "init", "step")


@out_of_graphs
def solve_ivp(
    func: Callable[[Any, Any], Any],
    y0: Any,
    t: Tensor,
    *,
    method: str | AbstractOneStep = "rk4",
    solver: str | AbstractSweep | Sequential = "auto",
    guess: Any = "coarse",
    rtol: Any = None,
    atol: Any = None,
    max_steps: int | None = None,
    window: int | None = None,
    throw: bool = True,
    return_solution: bool = False,
    structure: AbstractStructure | None = None,
    fallback: str | None = None,
    patience: int | None = None,
    adjoint: str | ChainAdjoint | None = None,
    batched: bool | None = None,
    options: Any = None,
    event_fn: Any = None,
) -> Any:
    """Solve `dy/dt = func(t, y)`, `y(t[0]) = y0` by a one-step method on a time grid.

    `y[i + 1]` is one step of `method` from `y[i]`, over `t[i]` to `t[i + 1]`: the
    sequence that a loop over the times computes, here by
    [`parafix.deer.torch.scan`][], which can treat all times at once. The names and the
    order of the arguments are those of `odeint` of torchdiffeq.

    !!! example

        ```python
        import torch
        from parafix.deer.torch import solve_ivp

        field = torch.nn.Sequential(
            torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)
        )
        t = torch.linspace(0, 10, 1001)
        ys = solve_ivp(lambda t, y: field(y), torch.ones(1, 2), t)  # (1001, 1, 2)
        ys[-1].sum().backward()
        ```

    Derivatives with respect to `y0`, `t` and all that `func` closes over, weights of
    modules among it, come by themselves, to any order: those of the discrete steps, not
    of the differential equation.

    **Arguments:**

    - `func`: `(t, y) -> dy/dt` with `t` a tensor `()` in the precision of `y`, `y` of
        the structure, shapes and dtypes of `y0`, and `dy/dt` of the same structure and
        shapes. It must be deterministic. It is written for one time; for all times at
        once it runs under `torch.func.vmap`, where `t` has no value that Python can
        ask for: `if t > 1` and `float(t)` are for `solver="sequential"`.
    - `y0`: a tensor, or a pytree of tensors, real or complex floats, of any shape.
    - `t`: shape `(T + 1,)`, floats, strictly increasing or strictly decreasing.
    - `method`: `"euler"`, `"midpoint"`, `"heun2"`, `"heun3"`, `"rk4"` (the 3/8 rule),
        which are the numbers of torchdiffeq on the same `t`; `"classical_rk4"`,
        `"implicit_midpoint"`; or an [`parafix.deer.torch.AbstractOneStep`][]. Every
        step is exactly from one time to the next, so `t` decides about accuracy.
    - `solver`, `max_steps`, `window`, `throw`, `fallback`, `patience`, `adjoint`: as in
        [`parafix.deer.torch.scan`][]. `"sequential"` is the loop in Python, and serves
        where nothing else does.
    - `guess`: where sweeps start: `"coarse"` for a loop over every tenth time and lines
        between (of a sample for which that is further from a solution than `y0` at all
        times, the latter); `"init"` for `y0` at all times; `"step"` for one step from
        `y0`; states like what is returned, whose first row is not looked at; or the
        [`parafix.core.torch.Solution`][] of an earlier solve. Its gradient is zero.
    - `rtol`, `atol`: how exactly the equations of the steps are to hold; by default
        `eps^(3/4)` of the dtype of each leaf. They have nothing to do with the error of
        the method, nor with steps of another length.
    - `structure`: what is known of the Jacobian of `func` in `y`, and so of that of a
        step: [`parafix.core.torch.Diagonal`][] or [`parafix.core.torch.Blocks`][]. By
        default the attribute `structure` of `func`, and dense where there is none.
    - `batched`: whether axis 0 of the leaves of `y0` counts samples, which `func` must
        not mix: every sample then stops by itself, and Jacobians are of one sample. If
        not, all of `y0` is one system, whose Jacobian holds all its entries. By default
        it does if all leaves have two axes or more. A `func` that mixes samples is an
        error where sweeps run.
    - `return_solution`: whether to return how it went, too.
    - `options`, `event_fn`: of torchdiffeq; anything but none is an error that says
        what to do instead.

    **Returns:**

    The states at all times, `(T + 1, ...)` over each leaf of `y0`, the first of which
    is `y0`; or these and a [`parafix.core.torch.Solution`][] with them as its `value`.
    Its `result` and statistics are `(B,)`, or `()` if there are no samples, and count
    steps: position `i` is the step from `t[i]` to `t[i + 1]`.

    **Raises:**

    `TypeError` or `ValueError` for arguments that do not fit, and `RuntimeError` with
    the sentence of the first sample that failed if `throw` is true. Under transforms of
    `torch.func` nobody looks at the order of `t`.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024, solve the equation itself at all times at once;
        here it is the steps of a method.
    """
    _check_unsupported(options, event_fn)
    one_step = as_one_step(method)
    structure = structure_of(func) if structure is None else structure
    if isinstance(checked_structure(structure), Custom):
        raise TypeError(
            "`structure` cannot be `Custom`: it is to be that of `func`, and what is "
            "solved are steps, whose Jacobian is another."
        )
    batched = checked_state(y0, batched)
    steps = Steps.of(func, one_step, y0, batched)
    layout, init = steps.layout, steps.init
    xs = checked_times(t, layout)
    length = len(t) - 1
    structure.shape(layout.size)  # An error if there cannot be such blocks.

    automatic = isinstance(solver, str) and solver == "auto"
    sequential = isinstance(solver, Sequential) or solver == "sequential"
    if automatic:
        size, samples = layout.size, layout.samples
        name = choose(length, size, layout.device.type, samples, structure).solver
        job = Job(steps, layout, init, xs, length, False, rtol, atol, structure)
        sequential = name == "sequential" or not sweeps_serve(job)
        if not sequential:
            # As `scan` does; what is none of these it finds itself.
            solver = name
            fallback, patience = fallback or "sequential", patience or PATIENCE
    guess = _checked_guess(guess, y0, len(t), batched)
    if isinstance(guess, str) and guess == "coarse":
        empty = length * layout.size * layout.samples == 0
        guess = None if sequential or empty else coarse(steps, t, xs)
    try:
        out = scan(
            steps,
            init,
            xs,
            length,
            solver=solver,
            guess=guess,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
            window=window,
            throw=throw,
            return_solution=return_solution,
            structure=structure,
            fallback=fallback,
            patience=patience,
            adjoint=adjoint,
        )
    except MixedSamplesError as e:
        raise ValueError(
            f"`func` mixes samples: axis 0 of `y0` was taken to count {layout.samples} "
            "of them, and the slope of the first depends on the others. If all of `y0` "
            "is one system, say `batched=False`."
        ) from e
    if not return_solution:
        _, ys = out
        return steps.outward(ys)
    (_, ys), solution = out
    ys = steps.outward(ys)
    return ys, _outward(solution, ys, batched)


def _outward(solution, ys, batched):
    """`solution` as users see it: with all states, and no samples if there are none."""
    one = (lambda x: x) if batched else (lambda x: x[0] if isinstance(x, Tensor) else x)
    return Solution(
        value=ys,
        result=one(solution.result),
        stats={name: one(x) for name, x in solution.stats.items()},
        position=one(solution.position),
        leaf=one(solution.leaf),
        leaves=solution.leaves,
    )


def _checked_guess(guess, y0, times, batched):
    """`guess`, where it is states at all times as those that sweeps look for."""
    if guess is None or (isinstance(guess, str) and guess in _GUESSES):
        return guess
    if isinstance(guess, Solution):
        # What it was made by is not differentiated through.
        guess = mapped(Tensor.detach, guess.value)
    leaves, treedef = pytree.tree_flatten(guess)
    states, expected = pytree.tree_flatten(y0)
    fits = treedef == expected and all(
        isinstance(x, Tensor) and x.shape == (times, *y.shape)
        for x, y in zip(leaves, states, strict=True)
    )
    if not fits:
        shapes = [(times, *y.shape) for y in states]
        got = [tuple(x.shape) if isinstance(x, Tensor) else x for x in leaves]
        raise ValueError(
            '`guess` must be "coarse", "init", "step", a Solution or states as '
            f"`solve_ivp` returns them: leaves of shapes {shapes}, got {got}."
        )
    guess = mapped(lambda x: x[1:], guess)
    return guess if batched else mapped(lambda x: x[:, None], guess)


def _check_unsupported(options, event_fn):
    if event_fn is not None:
        raise ValueError(
            "`event_fn` is not supported: a solve for all times at once needs to know "
            "them. Solve on a `t` that reaches far enough, and look for the event in "
            "what is returned."
        )
    if options:
        names = ", ".join(f'"{name}"' for name in options)
        raise ValueError(
            f"`options` are not supported, got {names}: every step is from one time of "
            "`t` to the next. For shorter steps give more times, and take every k-th "
            "row of what is returned."
        )
