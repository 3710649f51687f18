import operator
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from parafix.core.jax import (
    AbstractStructure,
    AbstractSweep,
    Sequential,
    Solution,
    structure_of,
)

from ._scan import check_lengths, scan


_Y = TypeVar("_Y")
_X = TypeVar("_X")
_Params = TypeVar("_Params")


def seq1d(
    f: Callable[[_Y, _X, _Params], _Y],
    y0: _Y,
    xs: _X | None = None,
    params: Any = None,
    *,
    length: int | None = None,
    solver: str | AbstractSweep | Sequential = "deer",
    guess: _Y | Solution | str | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int | None = None,
    window: int | None = None,
    throw: bool = True,
    return_solution: bool = False,
    structure: AbstractStructure | None = None,
    fallback: str | None = None,
    patience: int | None = None,
) -> Any:
    """A recurrence: `y_t = f(y_{t-1}, x_t, params)` for `t = 1, ..., T`.

    [`parafix.deer.jax.scan`][] of a step that returns its carry, and everything about
    it is as there: derivatives, batches by `jax.vmap`, what a failure is.

    !!! example

        ```python
        import jax.numpy as jnp
        from parafix.deer.jax import seq1d

        def cell(h, x, weights):
            return jnp.tanh(weights @ h + x)

        hs = seq1d(cell, h0, xs, weights)  # (T, n), without h0
        ```

    **Arguments:**

    - `f`: `(y, x, params) -> y`, of the structure, shapes and dtypes of `y0`.
    - `y0`: the state before the first step; any pytree, for one sample.
    - `xs`: a pytree of arrays with time, `T`, as their first axis; or `None`, with
        `length`.
    - `params`: handed to `f` as it is, and differentiated; any pytree.
    - `length`: `T`, where `xs` does not say it.
    - `solver`: `"deer"`, or whatever [`parafix.deer.jax.scan`][] takes; `"auto"`
        chooses, `"sequential"` is the loop.
    - `guess`: where sweeps start: like what is returned, the
        [`parafix.core.jax.Solution`][] of an earlier solve, `"init"` for `y0` at all
        times, the default, or `"step"`.
    - All others: as in [`parafix.deer.jax.scan`][].

    **Returns:**

    `ys`: like `y0`, with a leading axis `T` and without `y0` itself; or
    `(ys, solution)`, if `return_solution`, with a [`parafix.core.jax.Solution`][].

    **Raises:**

    What [`parafix.deer.jax.scan`][] does.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024.
    """
    num_steps(xs, length)
    out = scan(
        _Step(f, params),
        y0,
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
        structure=structure_of(f) if structure is None else structure,
        fallback=fallback,
        patience=patience,
    )
    if not return_solution:
        return out[1]
    (_, ys), solution = out
    return ys, solution


def num_steps(xs: Any, length: int | None) -> int:
    """`T`, which either says; raises `ValueError` if neither does."""
    check_lengths(xs)
    leaves = jax.tree.leaves(xs)
    if leaves:
        return jnp.shape(leaves[0])[0]
    if length is None:
        raise ValueError("`xs` holds no array, so `length` must say how many steps.")
    return operator.index(length)


class _Step(eqx.Module):
    # A module and no closure: two solves with the same `f` are one compiled program.
    f: Callable
    params: Any

    def __call__(self, y, x):
        y = self.f(y, x, self.params)
        return y, y
