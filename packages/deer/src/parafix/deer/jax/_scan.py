import dataclasses
import functools as ft
import operator
from collections.abc import Callable
from typing import Any, cast, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import ArrayLike

from parafix.core.jax import (
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
from ._carry import Layout
from ._job import hashable, Job, sweeps_serve
from ._run import run, run_loop
from ._segments import checked_segments


_Carry = TypeVar("_Carry")
_X = TypeVar("_X")
_Y = TypeVar("_Y")


def scan(
    f: Callable[[_Carry, _X], tuple[_Carry, _Y]],
    init: _Carry,
    xs: _X | None = None,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    *,
    solver: str | AbstractSweep | Sequential = "auto",
    guess: _Carry | Solution | str | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int | None = None,
    window: int | None = None,
    throw: bool = True,
    return_solution: bool = False,
    structure: AbstractStructure | None = None,
    resets: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    fallback: str | None = None,
    patience: int | None = None,
    adjoint: str | ChainAdjoint | None = None,
) -> Any:
    """A drop-in for `jax.lax.scan` that can treat all times at once.

    !!! example

        ```python
        import jax
        from parafix.deer.jax import scan

        carry, ys = jax.lax.scan(f, init, xs)
        carry, ys = scan(f, init, xs)                  # the same numbers
        carry, ys = scan(f, init, xs, solver="deer")   # in a few parallel sweeps
        ```

    The first six arguments are those of `jax.lax.scan`. Derivatives (forward, reverse,
    any order), `vmap`, `jit` and nesting work as there; under `vmap` every sample stops
    by itself.

    **Arguments:**

    - `f`: `(carry, x) -> (carry, y)`; any pytrees. Float and complex leaves of the
        carry are iterated on. Others (counters, PRNG keys) may not depend on them,
        unless the solve is sequential.
    - `init`, `xs`, `length`, `reverse`: as in `jax.lax.scan`.
    - `unroll`: used where the solve is sequential.
    - `solver`: `"deer"` (Newton), `"quasi-deer"`, `"elk"`, `"quasi-elk"`, `"picard"`,
        `"jacobi"`, `"sequential"` (`jax.lax.scan` itself), any other registered sweep,
        a solver object, or `"auto"`: sequential where sweeps do not pay
        ([`parafix.deer.jax.choose`][] says when) or cannot serve.
    - `guess`: where the sweeps start: the [`parafix.core.jax.Solution`][] of an earlier
        solve, or a pytree like the carry with a leading axis `T`, in the order of
        `ys`; `"init"` for `init` at all times, the default; `"step"` for what one step
        from `init` leads to. Its gradient is zero.
    - `rtol`, `atol`: tolerances on the carry; by default `eps^(3/4)` of the dtype of
        each leaf.
    - `max_steps`: at most this many sweeps; after `k` of them the first `k` carries are
        exact. `T`, which always is enough, by default.
    - `window`: solve this many times to the end before going on to the next. Bounds
        memory by `O(T n) + O(window n^2)`, gradients included.
    - `throw`: whether a failure raises, also under `jit` and when only a gradient is
        asked for. A sequential solve never does.
    - `return_solution`: whether to return how it went, too.
    - `structure`: what is known of the Jacobian of `f` with respect to the float leaves
        of the carry, one after the other: [`parafix.core.jax.Diagonal`][],
        [`parafix.core.jax.Blocks`][], or a function that computes it
        ([`parafix.core.jax.Custom`][]). Sweeps, certificate and gradient then cost what
        it costs. By default the attribute `structure` of `f`, and dense where there is
        none.
    - `resets`: booleans `(T,)`: where true, the step that takes `xs[t]` starts from
        `init`, drivers included, and not from the carry, so that several sequences can
        be packed into one. A NaN does not get past a reset: the sequences after it are
        solved, and the result is `nonfinite` with the first bad position. With
        `reverse`, sequences end where without it they start.
    - `lengths`: an integer from 0 to `T`: only the first so many of the `xs` belong to
        the sample. The others, whatever they hold, leave the carry as it is, and their
        `ys` are zero. Under `vmap`, one number for each sample.
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
        [`parafix.core.jax.ChainAdjoint`][]: the chain at its states, by one affine scan
        over its Jacobians, to every order. Sweeps always have it. With a sequential
        solve the loop runs as it is, and only its derivatives are those of the chain,
        where `f` allows for it (no driver depends on floats, `f` has a tangent and no
        effects). `None` is the loop's own derivative there; with `"auto"` what pays
        ([`parafix.deer.jax.choose`][] says when).

    **Returns:**

    `(carry, ys)`, or `((carry, ys), solution)` with a
    [`parafix.core.jax.Solution`][] whose `value` holds the carries at all times, in the
    order of `ys`.

    **Raises:**

    `TypeError` or `ValueError` for arguments that do not fit, and the sentence of the
    result (an `equinox.EquinoxRuntimeError`) where a solve fails and `throw` is true.
    A false `structure` is such an error too, whatever `throw`, where sweeps run:
    products with the Jacobian at a few points, some far from `init`, contradict it.
    [`parafix.deer.jax.check_structure`][] says where.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024.
    """
    check_lengths(xs)
    max_steps = checked_count("max_steps", max_steps)
    window = checked_count("window", window)
    automatic = isinstance(solver, str) and solver == "auto"
    on_cpu = automatic and jax.default_backend() == "cpu"
    if on_cpu:
        solver, automatic = "sequential", False
    # A wrong name or a doubled tolerance is an error wherever the solve would run.
    chosen = as_sweep("deer" if automatic else solver, rtol, atol)
    if fallback not in (None, "sequential"):
        raise ValueError(f'`fallback` must be None or "sequential", got {fallback!r}.')
    patience = checked_count("patience", patience)
    if patience is not None and fallback is None and not (automatic or on_cpu):
        raise ValueError(
            '`patience` says when sweeps are given up for `fallback="sequential"`, '
            "which was not asked for."
        )
    if adjoint not in (None, "implicit") and not isinstance(adjoint, ChainAdjoint):
        raise TypeError(
            f'`adjoint` must be None, "implicit" or a `ChainAdjoint`, got {adjoint!r}.'
        )
    ladder, guess = _rung(guess)
    plain = guess is None and not return_solution
    plain = plain and resets is None and lengths is None
    structure = structure_of(f) if structure is None else checked_structure(structure)
    function = hashable(f)
    plain = plain and isinstance(chosen, Sequential) and function is f
    if plain and adjoint is None and not on_cpu:
        return lax.scan(f, init, xs, length, reverse, unroll)

    # `lax.scan` itself says what is wrong with `f`, `init`, `xs` and `length`.
    carry_struct, _ = jax.eval_shape(
        lambda init, xs: lax.scan(function, init, xs, length, reverse), init, xs
    )
    layout = Layout.of(carry_struct)
    leaves = jax.tree.leaves(xs)
    steps = jnp.shape(leaves[0])[0] if leaves else operator.index(cast(int, length))
    if steps < 0:
        raise ValueError(f"`length` must be non-negative, got {steps}.")
    if on_cpu and adjoint is None:
        adjoint = choose(steps, layout.size, "cpu", structure).adjoint
        if plain and adjoint is None:
            return lax.scan(f, init, xs, length, reverse, unroll)
    init, xs = layout.cast(init), jax.tree.map(jnp.asarray, xs)
    if guess is not None:
        guess = _checked_guess(guess, layout, steps)
    segments = checked_segments(resets, lengths, steps)
    structure.shape(layout.size)  # An error if there cannot be such blocks.
    job = Job(
        f,
        layout,
        rtol,
        atol,
        steps,
        reverse,
        unroll,
        max_steps,
        window,
        throw,
        return_solution,
        structure,
        fallback,
        ladder,
        adjoint,
        patience,
    )
    if automatic:
        platform = jax.default_backend()
        choice = choose(steps, layout.size, platform, structure).solver
        if choice != "sequential" and sweeps_serve(job, init, xs):
            safe = dataclasses.replace(
                job, fallback="sequential", patience=patience or PATIENCE
            )
            # What this is compiled for is known for sure only when it is lowered.
            return lax.platform_dependent(
                init,
                xs,
                guess,
                segments,
                cpu=ft.partial(run, job, "sequential"),
                default=ft.partial(run, safe, choice),
            )
        solver = "sequential"
    # What is not differentiated is to be the program of `lax.scan`.
    runs = run_loop if plain else run
    return runs(job, solver, init, xs, guess, segments)


def checked_structure(structure: Any) -> AbstractStructure:
    """`structure`, which must be one."""
    if not isinstance(structure, AbstractStructure):
        raise TypeError(
            "`structure` must be an AbstractStructure such as `Diagonal()` or "
            f"`Blocks(4)`, got {structure!r}."
        )
    return structure


def check_lengths(xs: Any) -> None:
    """Raises `ValueError` if the inputs have not one length, on their first axes."""
    for path, x in jax.tree_util.tree_leaves_with_path(xs):
        if jnp.ndim(x) == 0:
            raise ValueError(
                f"`xs{jax.tree_util.keystr(path)}` is a scalar; every leaf of `xs` "
                "must have time as its first axis."
            )
    lengths = {
        "xs" + jax.tree_util.keystr(path): jnp.shape(x)[0]
        for path, x in jax.tree_util.tree_leaves_with_path(xs)
    }
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"`{name}` has {length}" for name, length in lengths.items())
        raise ValueError(f"The leaves of `xs` must have one length: {found}.")


def _rung(guess):
    """The name of a guess, and a guess that is none."""
    if isinstance(guess, Solution):
        return "init", guess.value
    if not isinstance(guess, str):
        return "init", guess
    if guess not in ("init", "step"):
        raise ValueError(
            '`guess` must be "init", "step", carries at all times or a Solution, got '
            f"{guess!r}."
        )
    return guess, None


def _checked_guess(guess, layout, length):
    guess = jax.tree.map(jnp.asarray, guess)
    if jax.tree.structure(guess) != layout.treedef:
        raise ValueError(
            "`guess` must have the structure of the carry, "
            f"{layout.treedef}; got {jax.tree.structure(guess)}."
        )
    for name, struct, x in zip(
        layout.names, layout.structs, jax.tree.leaves(guess), strict=True
    ):
        expected = (length, *struct.shape)
        if x.shape != expected:
            raise ValueError(
                f"`guess` must have a leading axis of {length} over `{name}`: expected "
                f"shape {expected}, got {x.shape}."
            )
        if jnp.iscomplexobj(x) and not jnp.iscomplexobj(struct):
            raise TypeError(f"`guess` is {x.dtype} where `{name}` is {struct.dtype}.")
    return layout.cast(guess)
