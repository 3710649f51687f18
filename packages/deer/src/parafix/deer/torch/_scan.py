import dataclasses
import operator
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.utils import _pytree as pytree

from parafix.core.torch import (
    AbstractStructure,
    AbstractSweep,
    as_sweep,
    ChainAdjoint,
    checked_count,
    Sequential,
    Solution,
    structure_of,
)

from ._auto import choose, PATIENCE
from ._carry import Layout, Struct
from ._eager import out_of_graphs
from ._job import flip, Job, sweeps_serve
from ._loop import run_sequentially
from ._run import run_in_parallel
from ._segments import checked_segments, Looped, poisoned, solve_segments


_Carry = TypeVar("_Carry")
_X = TypeVar("_X")
_Y = TypeVar("_Y")


@out_of_graphs
def scan(
    f: Callable[[_Carry, _X], tuple[_Carry, _Y]],
    init: _Carry,
    xs: _X | None = None,
    length: int | None = None,
    reverse: bool = False,
    *,
    solver: str | AbstractSweep | Sequential = "auto",
    guess: _Carry | Solution | str | None = None,
    rtol: Any = None,
    atol: Any = None,
    max_steps: int | None = None,
    window: int | None = None,
    throw: bool = True,
    return_solution: bool = False,
    structure: AbstractStructure | None = None,
    resets: Any = None,
    lengths: Any = None,
    fallback: str | None = None,
    patience: int | None = None,
    adjoint: str | ChainAdjoint | None = None,
) -> Any:
    """A loop over time that can treat all times at once.

    !!! example

        ```python
        import torch
        from parafix.deer.torch import scan

        carry, ys = init, []                           # the loop
        for x in xs:
            carry, y = f(carry, x)
            ys.append(y)

        carry, ys = scan(f, init, xs)                  # the same numbers
        carry, ys = scan(f, init, xs, solver="deer")   # in a few parallel sweeps
        ```

    Derivatives with respect to `init`, `xs` and all that `f` closes over, weights of
    modules among it, come by themselves, to any order, by `backward` and under
    `torch.func`. Every sample of a batch stops by itself, and the others change no bit
    of it.

    **Arguments:**

    - `f`: `(carry, x) -> (carry, y)`; any pytrees. It must not mix samples, and must be
        deterministic. Float and complex leaves of the carry are iterated on. Others
        (counters, flags) may not depend on them, unless the solve is sequential. For
        all times at once, `f` runs under `torch.func.vmap`.
    - `init`: the carry before the first step; leaves `(B, ...)`.
    - `xs`: inputs with time as the first axis, `(T, B, ...)`, or `None`.
    - `length`: `T`; needed where there are no `xs`.
    - `reverse`: whether to go from the last time to the first.
    - `solver`: `"deer"` (Newton), `"quasi-deer"`, `"elk"`, `"quasi-elk"`, `"picard"`,
        `"jacobi"`, `"sequential"` (the loop itself), any other registered sweep, a
        solver object, or `"auto"`: sequential where sweeps do not pay
        ([`parafix.deer.torch.choose`][] says when) or cannot serve.
    - `guess`: where the sweeps start: the [`parafix.core.torch.Solution`][] of an
        earlier solve, or a pytree like the carry with a leading axis `T`, in the order
        of `ys`; `"init"` for `init` at all times, the default; `"step"` for what one
        step from `init` leads to. Its gradient is zero.
    - `rtol`, `atol`: tolerances on the carry; by default `eps^(3/4)` of the dtype of
        each leaf.
    - `max_steps`: at most this many sweeps; after `k` of them the first `k` carries are
        exact. `T`, which always is enough, by default.
    - `window`: solve this many times to the end before going on to the next. Bounds
        memory by `O(T n) + O(window n^2)`, gradients included.
    - `throw`: whether a failure of any sample raises. A sequential solve never does.
    - `return_solution`: whether to return how it went, too. That takes about one more
        sweep, for the Lyapunov exponent.
    - `structure`: what is known of the Jacobian of `f` with respect to the float leaves
        of the carry, one after the other: [`parafix.core.torch.Diagonal`][],
        [`parafix.core.torch.Blocks`][], or a function that computes it
        ([`parafix.core.torch.Custom`][]). Sweeps, certificate and gradient then cost
        what it costs. By default the attribute `structure` of `f`, and dense where
        there is none. If `f` has a method `linearised`, too, `(carry, x) -> (carry, a)`
        with the Jacobian in the form of that attribute, it is called instead of pulls;
        it and `f` then take all times at once, `(T, B, ...)`.
    - `resets`: booleans `(T,)` or `(T, B)`: where true, the step that takes `xs[t]`
        starts from `init` and not from the carry, so that several sequences can be
        packed into one. A NaN does not get past a reset: the sequences after it are
        solved, by one more solve for each that turns bad, and the result is `nonfinite`
        with the first bad position. With `reverse`, sequences end where without it they
        start.
    - `lengths`: integers `(B,)` from 0 to `T`: only the first so many of the `xs`
        belong to a sample. The others, whatever they hold, leave the carry as it is,
        and their `ys` are zero. With either, all leaves of `xs` and of the outputs are
        `(T, B, ...)`.
    - `fallback`: what to do where sweeps fail (`max_steps_reached`, `stalled`,
        `ill_conditioned`): `"sequential"` goes on from the prefix, one step after the
        other; from the beginning if the chain amplifies rounding. That is a success,
        and `stats["sequential_from"]` says where it began, in the order of running (`T`
        if it was not needed). `None` leaves it at that. `"auto"` always has it.
    - `patience`: with `fallback`, look after so many sweeps, twice as many, four times
        as many, ..., whether further ones will pay, and go on sequentially if not:
        where errors do not shrink along the prefix, by its largest Lyapunov exponent,
        and most of the way is still to go. From four times as many on the pace alone
        decides. `None` never looks. `"auto"` has 10.
    - `adjoint`: what is differentiated. `"implicit"`, or a
        [`parafix.core.torch.ChainAdjoint`][]: the chain at its states, by one affine
        scan over its Jacobians, to every order. Sweeps always have it. With a
        sequential solve the loop then records nothing, and outputs that are no carries
        are computed once more, at all times at once; `None` is the loop's own
        derivative there, which is also taken where `f` does not allow for another (a
        driver depends on floats, `vmap` or pulls do not take it) and with `resets` or
        `lengths`.

    **Returns:**

    `(carry, ys)`, or `((carry, ys), solution)` with a
    [`parafix.core.torch.Solution`][] whose `value` holds the carries at all times, in
    the order of `ys`; its `result` and statistics are of shape `(B,)`.

    **Raises:**

    `TypeError` or `ValueError` for arguments that do not fit, among them an `f` that is
    seen to mix samples, and `RuntimeError` with the sentence of the first sample that
    failed if `throw` is true. A false `structure` is a `ValueError`, whatever `throw`,
    where sweeps run: products with the Jacobian at a few points, some far from `init`,
    contradict it. [`parafix.deer.torch.check_structure`][] says where.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024.
    """
    steps = checked_length(xs, length)
    max_steps = checked_count("max_steps", max_steps)
    window = checked_count("window", window)
    automatic = isinstance(solver, str) and solver == "auto"
    # A wrong name or a doubled tolerance is an error wherever the solve would run.
    chosen = as_sweep("sequential" if automatic else solver, rtol, atol)
    formula = structure is None and hasattr(f, "linearised")
    structure = structure_of(f) if structure is None else checked_structure(structure)
    layout = Layout.of(init)
    structure.shape(layout.size)  # An error if there cannot be such blocks.
    if fallback not in (None, "sequential"):
        raise ValueError(f'`fallback` must be None or "sequential", got {fallback!r}.')
    patience = checked_count("patience", patience)
    if patience is not None and fallback is None and not automatic:
        raise ValueError(
            '`patience` says when sweeps are given up for `fallback="sequential"`, '
            "which was not asked for."
        )
    if adjoint not in (None, "implicit") and not isinstance(adjoint, ChainAdjoint):
        raise TypeError(
            f'`adjoint` must be None, "implicit" or a `ChainAdjoint`, got {adjoint!r}.'
        )
    guess = _checked_guess(guess, layout, steps)
    segments = checked_segments(resets, lengths, steps, layout)
    if reverse:
        xs, segments = flip(xs), segments.flip()
    xs = segments.filled(xs)

    def job_of(segments):
        common = (steps, reverse, rtol, atol)
        if segments.trivial:
            return Job(f, layout, init, xs, *common, structure, formula)
        step = Looped(f, init, structure)
        inputs = segments.inputs(xs)
        return Job(step, layout, init, inputs, *common, step.structure, formula)

    job = job_of(segments)
    if automatic:
        size, samples = layout.size, layout.samples
        name = choose(steps, size, layout.device.type, samples, structure).solver
        if name != "sequential" and sweeps_serve(job):
            chosen, solver = as_sweep(name, rtol, atol), name
            fallback, patience = "sequential", patience or PATIENCE
    if isinstance(chosen, Sequential) or steps * layout.size * layout.samples == 0:
        if isinstance(solver, Sequential):
            rtol, atol = solver.rtol, solver.atol
        derivative = adjoint if segments.trivial else None
        return run_sequentially(job, rtol, atol, return_solution, derivative)

    def solve(segments, guess):
        return run_in_parallel(
            job_of(segments),
            solver,
            guess,
            max_steps,
            window,
            throw,
            return_solution,
            fallback,
            patience,
            adjoint or "implicit",
        )

    out, solution, dead = solve_segments(segments, solve, guess)
    if dead is not None:
        segments = dataclasses.replace(segments, dead=dead)
        _, ys = out
        value, ys = job.flip((solution.value, ys))
        value, ys = poisoned(f, layout, init, xs, segments, value, ys)
        carry = pytree.tree_map_only(Tensor, lambda x: x[-1], value)
        out = (carry, job.flip(ys))
        solution = dataclasses.replace(solution, value=job.flip(value))
    return (out, solution) if return_solution else out


def checked_structure(structure: Any) -> AbstractStructure:
    """`structure`, which must be one."""
    if not isinstance(structure, AbstractStructure):
        raise TypeError(
            "`structure` must be an AbstractStructure such as `Diagonal()` or "
            f"`Blocks(4)`, got {structure!r}."
        )
    return structure


def checked_length(xs: Any, length: int | None) -> int:
    """The number of steps, by the inputs and by what was asked for."""
    found = {}
    for path, x in pytree.tree_flatten_with_path(xs)[0]:
        if x is None:
            continue
        name = f"xs{pytree.keystr(path)}"
        if not isinstance(x, Tensor):
            what = type(x).__name__
            raise TypeError(f"`{name}` must be a tensor (T, B, ...), got a {what}.")
        if x.ndim == 0:
            raise ValueError(
                f"`{name}` is a scalar; every leaf of `xs` must have time as its first "
                "axis."
            )
        found[name] = x.shape[0]
    if len(set(found.values())) > 1:
        listing = ", ".join(f"`{name}` has {count}" for name, count in found.items())
        raise ValueError(f"The leaves of `xs` must have one length: {listing}.")
    steps = next(iter(found.values()), None)
    if length is None:
        if steps is None:
            raise ValueError("`length` is needed where there are no `xs`.")
        return steps
    try:
        length = operator.index(length)
    except TypeError as e:
        raise TypeError(f"`length` must be an integer, got {length!r}.") from e
    if length < 0:
        raise ValueError(f"`length` must be non-negative, got {length}.")
    if steps is not None and steps != length:
        raise ValueError(
            f"`length` is {length}, and the leaves of `xs` have {steps} as their first "
            "axis."
        )
    return length


def _checked_guess(guess, layout, length):
    if isinstance(guess, Solution):
        # What it was made by is not differentiated through.
        guess = pytree.tree_map_only(Tensor, Tensor.detach, guess.value)
    if guess is None or (isinstance(guess, str) and guess == "init"):
        return None
    if isinstance(guess, str):
        if guess == "step":
            return guess
        raise ValueError(
            '`guess` must be "init", "step", carries at all times or a Solution, got '
            f"{guess!r}."
        )
    leaves, treedef = pytree.tree_flatten(guess)
    if treedef != layout.treedef:
        raise ValueError(
            f"`guess` must have the structure of the carry, {layout.treedef}; got "
            f"{treedef}."
        )
    for name, struct, x in zip(layout.names, layout.structs, leaves, strict=True):
        if struct.dtype is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"`guess` must hold tensors, got {x!r} for `{name}`.")
        expected = (length, *struct.shape)
        if tuple(x.shape) != expected:
            raise ValueError(
                f"`guess` must have a leading axis of {length} over `{name}`: expected "
                f"shape {expected}, got {tuple(x.shape)}."
            )
        if x.is_complex() and not struct.is_complex:
            raise TypeError(f"`guess` is {Struct.of(x)} where `{name}` is {struct}.")
    leaves = [
        x.to(struct.dtype) if struct.is_float else x
        for struct, x in zip(layout.structs, leaves, strict=True)
    ]
    return pytree.tree_unflatten(leaves, treedef)
