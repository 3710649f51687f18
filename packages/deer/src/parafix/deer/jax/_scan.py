import functools as ft
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from parafix.core.jax import (
    AbstractSweep,
    as_sweep,
    assess,
    Chain,
    checked_count,
    RESULTS,
    Sequential,
    Solution,
    solve_chain,
)

from ._auto import choose
from ._carry import inspect, Layout


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
    guess: _Carry | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    window: int | None = None,
    throw: bool = True,
    return_solution: bool = False,
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
    - `solver`: `"deer"` (Newton), `"jacobi"`, `"sequential"` (`jax.lax.scan` itself),
        any other registered sweep, a solver object, or `"auto"`: sequential where
        sweeps do not pay ([`parafix.deer.jax.choose`][] says when) or cannot serve.
    - `guess`: a pytree like the carry with a leading axis `T`, in the order of `ys`,
        for instance the `value` of an earlier solution; `init` at all times by default.
        Its gradient is zero.
    - `rtol`, `atol`: tolerances on the carry; by default `eps^(3/4)` of its coarsest
        dtype.
    - `max_steps`: at most this many sweeps; after `k` of them the first `k` carries are
        exact. `T`, which always is enough, by default.
    - `window`: solve this many times to the end before going on to the next. Bounds
        memory by `O(T n) + O(window n^2)`, gradients included.
    - `throw`: whether a failure raises, also under `jit` and when only a gradient is
        asked for. A sequential solve never does.
    - `return_solution`: whether to return how it went, too.

    **Returns:**

    `(carry, ys)`, or `((carry, ys), solution)` with a
    [`parafix.core.jax.Solution`][] whose `value` holds the carries at all times, in the
    order of `ys`.

    **Raises:**

    `TypeError` or `ValueError` for arguments that do not fit, and the sentence of the
    result (an `equinox.EquinoxRuntimeError`) where a solve fails and `throw` is true.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024.
    """
    _check_lengths(xs)
    max_steps = checked_count("max_steps", max_steps)
    window = checked_count("window", window)
    automatic = isinstance(solver, str) and solver == "auto"
    if automatic and jax.default_backend() == "cpu":
        solver = "sequential"
    if not isinstance(solver, str) or solver != "auto":
        # A wrong name or a doubled tolerance is an error wherever the solve would run.
        chosen = as_sweep(solver, rtol, atol, jnp.float32)
        if isinstance(chosen, Sequential) and guess is None and not return_solution:
            return lax.scan(f, init, xs, length, reverse, unroll)

    # `lax.scan` itself says what is wrong with `f`, `init`, `xs` and `length`.
    carry_struct, _ = jax.eval_shape(
        lambda init, xs: lax.scan(f, init, xs, length, reverse), init, xs
    )
    layout = Layout.of(carry_struct)
    init, xs = layout.cast(init), jax.tree.map(jnp.asarray, xs)
    leaves = jax.tree.leaves(xs)
    length = leaves[0].shape[0] if leaves else length
    if guess is not None:
        guess = _checked_guess(guess, layout, length)

    def run(solver, init, xs, guess):
        return _run(
            f,
            init,
            xs,
            guess,
            solver=as_sweep(solver, rtol, atol, layout.coarsest),
            layout=layout,
            length=length,
            reverse=reverse,
            unroll=unroll,
            max_steps=max_steps,
            window=window,
            throw=throw,
        )

    if isinstance(solver, str) and solver == "auto":
        platform = jax.default_backend()
        choice = choose(length, layout.size, platform).solver
        if choice != "sequential" and _sweeps_serve(f, init, xs, layout):
            # What this is compiled for is known for sure only when it is lowered.
            out, solution = lax.platform_dependent(
                init,
                xs,
                guess,
                cpu=ft.partial(run, "sequential"),
                default=ft.partial(run, choice),
            )
        else:
            out, solution = run("sequential", init, xs, guess)
    else:
        out, solution = run(solver, init, xs, guess)
    return (out, solution) if return_solution else out


@eqx.filter_jit
def _run(
    f,
    init,
    xs,
    guess,
    *,
    solver,
    layout,
    length,
    reverse,
    unroll,
    max_steps,
    window,
    throw,
):
    x = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    body = inspect(f, layout, init, x)
    sequential = isinstance(solver, Sequential) or length * layout.size == 0
    if sequential:

        def with_carry(carry, x):
            carry, y = f(carry, x)
            return carry, (y, carry)

        carry, (ys, carries) = lax.scan(with_carry, init, xs, length, reverse, unroll)
        if body.tainted:
            return (carry, ys), _unassessed(carries, layout, length, reverse)
    elif body.tainted:
        driver, source = body.tainted[0]
        dtype = layout.structs[layout.names.index(driver)].dtype
        raise TypeError(
            f"`{driver}` ({dtype}) depends on `{source}`, and only float leaves of the "
            'carry can be iterated on. Make it a float, or use solver="sequential".'
        )
    if reverse:
        xs, guess = _flip(xs), _flip(guess)
    problem, drivers, new_drivers = _as_chain(f, init, xs, layout, length, reverse)
    states = jax.vmap(lambda carry: layout.split(carry)[0])
    if sequential:
        z = states(_flip(carries) if reverse else carries)
        solution = assess(problem, z, rtol=solver.rtol, atol=solver.atol)
        solution = eqx.tree_at(lambda s: s.value, solution, carries)
        return (carry, ys), solution

    solution = solve_chain(
        problem,
        solver=solver,
        guess=None if guess is None else states(guess),
        max_steps=max_steps,
        window=window,
        throw=throw,
    )
    z = solution.value
    carries = jax.vmap(layout.join)(z, new_drivers)
    carry = jax.tree.map(lambda x: x[-1], carries)
    if None in body.aliases:
        # The output of the step that led from one carry to the next.
        def output(inputs):
            state, drivers, x = inputs
            return f(layout.join(state, drivers), x)[1]

        inputs = (problem.lag(z), drivers, xs)
        if window is None:
            ys = jax.vmap(output)(inputs)
        else:
            ys = lax.map(jax.checkpoint(output), inputs, batch_size=window)
    else:
        leaves = jax.tree.leaves(carries)
        ys = jax.tree.unflatten(body.y_treedef, [leaves[i] for i in body.aliases])
    if reverse:
        ys, carries = _flip(ys), _flip(carries)
    return (carry, ys), eqx.tree_at(lambda s: s.value, solution, carries)


def _as_chain(f, init, xs, layout, length, reverse):
    """The chain of the float leaves, and the drivers before and after each step."""
    state, first = layout.split(init)

    def drive(drivers, x):
        # The floats do not matter: no driver depends on them.
        _, new = layout.split(f(layout.join(state, drivers), x)[0])
        return new, (drivers, new)

    def step(state, inputs):
        drivers, x = inputs
        carry, _ = f(layout.join(state, drivers), x)
        return layout.split(carry)[0]

    drivers = new_drivers = ()
    if first:
        _, (drivers, new_drivers) = lax.scan(drive, first, xs, length=length)
    problem = Chain(
        step,
        state,
        (drivers, xs),
        length,
        offset=length - 1 if reverse else 0,
        stride=-1 if reverse else 1,
        leaves=layout.leaves,
        eps=float(jnp.finfo(layout.coarsest).eps),
    )
    return problem, drivers, new_drivers


def _unassessed(carries, layout, length, reverse):
    """About a sequential solve that is no chain: only whether it is finite."""
    z = jax.vmap(lambda carry: layout.split(carry)[0])(carries)
    bad = ~jnp.isfinite(lax.stop_gradient(_flip(z) if reverse else z)).all(-1)
    prefix = jnp.where(bad.any(), jnp.argmax(bad), length)
    unknown = jnp.full((), jnp.nan, layout.dtype)
    none = jnp.array(0)
    return Solution(
        value=carries,
        result=RESULTS.where(bad.any(), RESULTS.nonfinite, RESULTS.successful),
        stats={
            "num_steps": jnp.array(length),
            "num_evals": none,
            "num_linear": none,
            "residual": unknown,
            "converged_prefix": prefix,
            "error_estimate": unknown,
        },
        position=length - 1 - prefix if reverse else prefix,
    )


def _sweeps_serve(f, init, xs, layout):
    """Whether sweeps can take `f`: drivers run by themselves, and `f` has a JVP."""
    x = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    if inspect(f, layout, init, x).tainted:
        return False
    try:
        jax.eval_shape(
            lambda carry, x: eqx.filter_jvp(f, (carry, x), (carry, None)), init, x
        )
    except Exception:
        # Whatever keeps `f` from forward mode (a custom VJP, a callback), the loop that
        # was written works.
        return False
    return True


def _check_lengths(xs):
    lengths = {
        "xs" + jax.tree_util.keystr(path): jnp.shape(x)[0]
        for path, x in jax.tree_util.tree_leaves_with_path(xs)
        if jnp.ndim(x) > 0
    }
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"`{name}` has {length}" for name, length in lengths.items())
        raise ValueError(f"The leaves of `xs` must have one length: {found}.")


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
    return layout.cast(guess)


def _flip(tree):
    return jax.tree.map(lambda x: jnp.flip(x, 0), tree)
