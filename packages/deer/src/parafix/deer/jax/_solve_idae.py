from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from parafix.core.jax import AbstractSweep, Sequential, Solution

from ._consistent import consistent
from ._grid import (
    check_output,
    checked_inputs,
    checked_state,
    checked_times,
    with_first,
    without_first,
)
from ._multistep import is_loop, multistep


_State = Float[Array, " n"]


def solve_idae(
    f: Callable[[_State, _State, Any, Any], _State],
    y0: ArrayLike,
    xs: PyTree[ArrayLike],
    params: Any,
    ts: ArrayLike,
    *,
    solver: str | AbstractSweep | Sequential = "deer",
    guess: ArrayLike | Solution | str | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    max_steps: int | None = None,
    window: int | None = None,
    throw: bool = True,
    return_solution: bool = False,
    fallback: str | None = None,
    patience: int | None = None,
) -> Any:
    """An implicit DAE on a time grid: `f(dy/dt, y, x(t), params) = 0`.

    Backward Euler, all times at once: with `h` the time between two of them, `y_{i+1}`
    is the solution of `f((y_{i+1} - y_i) / h, y_{i+1}, x_{i+1}, params) = 0`, found by
    Newton's method to a few roundings of its terms. So algebraic equations hold at all
    times, whatever the index of the problem, and differential ones are of first order.
    Derivatives are those of the implicit function theorem.

    !!! example

        ```python
        import jax.numpy as jnp
        from parafix.deer.jax import solve_idae

        def pendulum(slope, state, x, g):
            # of unit length; the last of the five is the tension of its rod
            dx, dy, du, dv, _ = slope
            x, y, u, v, tension = state
            forces = du + tension * x, dv + tension * y + g
            return jnp.stack([dx - u, dy - v, *forces, x**2 + y**2 - 1])

        ts = jnp.linspace(0.0, 2.0, 10_000)
        y0 = jnp.array([1.0, 0.0, 0.0, 0.0, 0.0])
        ys = solve_idae(pendulum, y0, None, 9.8, ts)  # (10000, 5)
        ```

    **Arguments:**

    - `f`: `(dy/dt, y, x, params) -> residual`, of the shape and dtype of `y0`. Its
        Jacobian with respect to `y_{i+1}`, `df/d(dy/dt) / h + df/dy`, must not be
        singular.
    - `y0`: shape `(n,)`, real floats: the state at `ts[0]`, tentatively. If there is no
        slope with which it satisfies the equations, those entries that have no slope
        of their own are changed, and if that is not enough the others, by as little as
        possible, to first order. (What follows by differentiating the equations, as
        that a pendulum moves along its circle, is not looked at: the first step sees
        to it.) `f` is linearised at a slope of zero for that.
    - `xs`: a pytree of arrays `(T, ...)`, the inputs at the times `ts`; `None` if `f`
        takes none.
    - `params`: handed to `f` as it is, and differentiated; any pytree.
    - `ts`: shape `(T,)`, increasing, `T >= 1`. Differentiated too.
    - `solver`: `"deer"`, or whatever [`parafix.deer.jax.scan`][] takes; `"auto"`
        chooses, `"sequential"` is the loop over the same steps.
    - `guess`: shape `(T, n)`, as what is returned; the
        [`parafix.core.jax.Solution`][] of an earlier solve; or as in
        [`parafix.deer.jax.multistep`][], which says what is made of it.
    - `rtol`, `atol`: as in [`parafix.deer.jax.multistep`][].
    - All others: as in [`parafix.deer.jax.scan`][].

    **Returns:**

    `ys`, shape `(T, n)`, with the consistent start as row 0; or `(ys, solution)`, if
    `return_solution`. Step `t`, in messages and in `solution`, leads to row `t + 1`.

    Where no consistent start was found, or the equation of a step was not solved, the
    state is NaN: the result is `nonfinite`, with the position of the step, which is 0
    for a start.

    **Raises:**

    `TypeError` or `ValueError` for arguments that do not fit, and the sentence of the
    result (an `equinox.EquinoxRuntimeError`) where a solve fails and `throw` is true.

    ??? cite "Reference"

        Hairer and Wanner, "Solving ordinary differential equations II", 1996, chapters
        VI and VII. All times at once: Lim, Zhu, Selfridge and Kasim, "Parallelizing
        non-linear sequential models over the sequence length", ICLR 2024.
    """
    y0 = checked_state(y0)
    ts = checked_times(ts, y0)
    xs = checked_inputs(xs, ts.shape[0])
    x = jax.tree.map(lambda x: x[0], xs)
    check_output(jax.eval_shape(f, y0, y0, x, params), y0, "a residual")
    y0 = _start(f, y0, x, params)
    inputs = (jax.tree.map(lambda x: x[1:], xs), jnp.diff(ts))
    out = multistep(
        _BackwardEuler(f),
        y0[None],
        inputs,
        params,
        implicit=True,
        solver=solver,
        guess=without_first(guess, ts.shape[0]),
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        window=window,
        throw=throw,
        return_solution=return_solution,
        fallback=fallback,
        patience=patience,
    )
    return with_first(y0, out, throw and not is_loop(solver))


@eqx.filter_jit
def _start(f, y0, x, params):
    return consistent(lambda v, y: f(v, y, x, params), y0)


class _BackwardEuler(eqx.Module):
    f: Callable

    def __call__(self, ys, inputs, params):
        (y, last), (x, h) = ys, inputs
        return self.f((y - last) / h, y, x, params)
