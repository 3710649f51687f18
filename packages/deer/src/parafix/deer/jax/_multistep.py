from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import ArrayLike

from parafix.core.jax import AbstractSweep, default_tolerance, Sequential, Solution

from ._implicit import solve_equation
from ._implicit_guess import linearised
from ._seq1d import num_steps, seq1d


_Y = TypeVar("_Y")
# How many roundings a tolerance is that nobody asked for.
_ROUNDINGS = 16


def multistep(
    f: Callable[[tuple[_Y, ...], Any, Any], _Y],
    y0s: _Y,
    xs: Any = None,
    params: Any = None,
    *,
    implicit: bool = False,
    length: int | None = None,
    solver: str | AbstractSweep | Sequential = "deer",
    guess: _Y | Solution | str | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int | None = None,
    window: int | None = None,
    throw: bool = True,
    return_solution: bool = False,
    fallback: str | None = None,
    patience: int | None = None,
) -> Any:
    """A recurrence with `p` lags, as linear multistep methods are.

    Explicit, `y_t = f((y_{t-1}, ..., y_{t-p}), x_t, params)`, or implicit, where `y_t`
    is the solution of `f((y_t, y_{t-1}, ..., y_{t-p}), x_t, params) = 0`. It is a chain
    of `p n` numbers, so that blocks of its Jacobian have `(p n)^2`.

    !!! example

        ```python
        from parafix.deer.jax import multistep

        def bdf2(ys, x, h):  # of dy/dt = -y + x
            y, y1, y2 = ys
            return y - (4 * y1 - y2) / 3 - 2 / 3 * h * (x - y)

        ys = multistep(bdf2, y0s, xs, h, implicit=True)  # y0s: (2, n)
        ```

    **Arguments:**

    - `f`: of a tuple of states, the latest first. Explicit: the next state. Implicit:
        its residual, as many numbers; Newton's method starts from `y_{t-1}`, and the
        Jacobian with respect to `y_t` must not be singular.
    - `y0s`: the `p` states before the first step, the earliest first: shape `(p, n)`,
        or a pytree of arrays `(p, ...)`; `p >= 1`. So `ys` goes on where `y0s` ends.
    - `xs`: a pytree of arrays with time, `T`, as their first axis; or `None`, with
        `length`.
    - `params`: handed to `f` as it is, and differentiated; any pytree.
    - `implicit`: see above.
    - `length`: `T`, where `xs` does not say it.
    - `solver`: `"deer"`, or whatever [`parafix.deer.jax.scan`][] takes.
    - `guess`: where sweeps start: like what is returned, the
        [`parafix.core.jax.Solution`][] of an earlier solve, `"init"` for `y0s` at all
        times, the default, or `"step"`. Implicit, a guess is improved by Newton's
        method on all equations at once before the sweeps, of which one often is enough
        then; it takes `O(T (p n)^2)` memory, whatever `window`. Not so `"step"`.
    - `rtol`, `atol`: as in [`parafix.deer.jax.scan`][]; but implicit, if `solver` is a
        name, `atol` is 16 times what rounding of the states before makes of an entry in
        a step, where that is more. (A multiplier of index 3 is determined to
        `eps / h^2`.)
    - All others: as in [`parafix.deer.jax.scan`][].

    **Returns:**

    `ys`, shape `(T, n)` or a pytree of `(T, ...)`, without `y0s`; or `(ys, solution)`,
    if `return_solution`. Implicit, its `stats` have one entry more: `num_guess_steps`,
    the steps that Newton's method took for the guess.

    Where the equation of an implicit step was not solved to rounding within 50 Newton
    steps, its state is NaN: the result is `nonfinite`, with the position of the step.

    **Raises:**

    What [`parafix.deer.jax.scan`][] does.

    ??? cite "Reference"

        Hairer, Nørsett and Wanner, "Solving ordinary differential equations I", 1993,
        chapter III. Newton's method for all times and several lags at once: Lim, Zhu,
        Selfridge and Kasim, "Parallelizing non-linear sequential models over the
        sequence length", ICLR 2024.
    """
    y0s = jax.tree.map(jnp.asarray, y0s)
    order = _num_lags(y0s)
    if implicit:
        _check_floats(y0s)
    lags = tuple(jax.tree.map(lambda y, i=i: y[i], y0s) for i in reversed(range(order)))
    steps = num_steps(xs, length)
    start: Any = guess.value if isinstance(guess, Solution) else guess
    named = start is None or isinstance(start, str)
    if not named:
        start = _checked_guess(y0s, start, steps)
    elif start not in (None, "init", "step"):
        raise ValueError(
            '`guess` must be "init", "step", states at all times or a Solution, got '
            f"{start!r}."
        )
    found = None
    improved = implicit and not (named and start == "step")
    if improved and steps > 0 and not is_loop(solver):
        start, found = _linearised(f, y0s, xs, params, None if named else start, steps)
        named = False
        if isinstance(solver, str) and atol is None:
            atol = _attainable(found, order)
    if not named:
        start = _with_lags(y0s, start, order)
    out = seq1d(
        _Implicit(f) if implicit else _Explicit(f),
        lags,
        xs,
        params,
        length=length,
        solver=solver,
        guess=start,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        window=window,
        throw=throw,
        return_solution=return_solution,
        fallback=fallback,
        patience=patience,
    )
    if not return_solution:
        return out[0]
    ys, solution = out
    stats = dict(solution.stats)
    if implicit:
        stats["num_guess_steps"] = jnp.array(0) if found is None else found.num_steps
    changed = eqx.tree_at(lambda s: (s.value, s.stats), solution, (ys[0], stats))
    return ys[0], changed


class _Explicit(eqx.Module):
    f: Callable

    def __call__(self, lags, x, params):
        y = self.f(lags, x, params)
        _check(y, lags[0], "the next state")
        return (y, *lags[:-1])


class _Implicit(eqx.Module):
    f: Callable

    def __call__(self, lags, x, params):
        start, unravel = ravel_pytree(lags[0])

        def equation(z):
            return self.residual((unravel(z), *lags), x, params)

        y = unravel(solve_equation(equation, start, lx.LU()))
        return (y, *lags[:-1])

    def residual(self, ys, x, params):
        residual = self.f(ys, x, params)
        _check(residual, ys[0], "a residual")
        return ravel_pytree(residual)[0]


@eqx.filter_jit
def _linearised(f, y0s, xs, params, guess, length):
    """A guess like what is returned, and what is known of it."""
    _, unravel = ravel_pytree(jax.tree.map(lambda y: y[0], y0s))
    f, y0s, xs, params, guess = _constant((f, y0s, xs, params, guess))

    def residual(ys, x):
        return _Implicit(f).residual(tuple(map(unravel, ys)), x, params)

    def flat(ys):
        return jax.vmap(lambda y: ravel_pytree(y)[0])(ys)

    y0s = flat(y0s)
    last = jnp.broadcast_to(y0s[-1], (length, y0s.shape[1]))
    guess = last if guess is None else flat(guess)
    found = linearised(residual, y0s, xs, jnp.where(jnp.isfinite(guess), guess, 0))
    return jax.vmap(unravel)(found.states), found


def _attainable(found, order):
    """The default tolerance, and what rounding does to a step, where that is more."""
    rounding = _ROUNDINGS * found.rounding
    least = default_tolerance(rounding.dtype)
    return jnp.tile(jnp.maximum(rounding, least), order)


def _constant(tree):
    def stop(x):
        return lax.stop_gradient(x) if eqx.is_inexact_array(x) else x

    return jax.tree.map(stop, tree)


def is_loop(solver: Any) -> bool:
    """Whether the solve is one step after the other, as far as is known here."""
    if solver == "auto":
        return jax.default_backend() == "cpu"
    return solver == "sequential" or isinstance(solver, Sequential)


def _check(out, like, meaning):
    got, wanted = (
        (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])
        for tree in (out, like)
    )
    if got != wanted:
        raise ValueError(
            f"`f` must return {meaning}, with the structure and shapes of a state of "
            f"`y0s`, {wanted[0]} {wanted[1]}; got {got[0]} {got[1]}."
        )


def _num_lags(y0s):
    orders = {jnp.shape(y)[:1] for y in jax.tree.leaves(y0s)}
    if len(orders) != 1 or orders & {(), (0,)}:
        shapes = jax.tree.map(jnp.shape, y0s)
        raise ValueError(
            "Every leaf of `y0s` must have one first axis of p >= 1 states, got "
            f"{shapes}."
        )
    return orders.pop()[0]


def _check_floats(y0s):
    for y in jax.tree.leaves(y0s):
        if not jnp.issubdtype(y.dtype, jnp.floating):
            raise TypeError(
                "With `implicit=True` all leaves of `y0s` must be real floats, got "
                f"{y.dtype}."
            )


def _checked_guess(y0s, guess, length):
    if jax.tree.structure(guess) != jax.tree.structure(y0s):
        raise ValueError(
            f"`guess` must have the structure of `y0s`, {jax.tree.structure(y0s)}; got "
            f"{jax.tree.structure(guess)}."
        )
    for y, g in zip(jax.tree.leaves(y0s), jax.tree.leaves(guess), strict=True):
        if jnp.shape(g) != (length, *y.shape[1:]):
            raise ValueError(
                f"`guess` must have shape {(length, *y.shape[1:])}, like what is "
                f"returned; got {jnp.shape(g)}."
            )
    return jax.tree.map(lambda y, g: jnp.asarray(g, y.dtype), y0s, guess)


def _with_lags(y0s, guess, order):
    """`(y_t, ..., y_{t-p+1})` at all times, from the `y_t`."""
    whole = jax.tree.map(lambda y, g: jnp.concatenate([y, g]), y0s, guess)
    return tuple(
        jax.tree.map(lambda y, k=k: y[order - k : y.shape[0] - k], whole)
        for k in range(order)
    )
