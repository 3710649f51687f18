from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PyTree

from parafix.core.jax import AbstractSweep, jacobian, Sequential, Solution

from ._grid import (
    check_output,
    checked_inputs,
    checked_state,
    checked_times,
    with_first,
    without_first,
)
from ._multistep import is_loop
from ._phi import responses
from ._seq1d import seq1d


def solve_ivp(
    f: Callable[[Float[Array, " n"], Any, Any], Float[Array, " n"]],
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
    """An ODE with inputs on a time grid: `dy/dt = f(y, x(t), params)`, `y(ts[0]) = y0`.

    One step of an exponential integrator between neighbouring times, all at once. With
    `h` the time between them, `J` the Jacobian of `f` at `(y_i, x_{i+1})`,
    `f_0 = f(y_i, x_i)` and `f_1 = f(y_i, x_{i+1})`,

    `u = h phi_1(h J) f_0 + h phi_2(h J) (f_1 - f_0)`,
    `y_{i+1} = y_i + u + 2 h phi_3(h J) (f(y_i + u, x_{i+1}) - f_1 - J u)`.

    Exact where `f` is linear in `y` and `f(y, x(t))` in time. Of third order where
    there are no inputs, and of second order in these, of which nothing is known between
    the times. It is stable at any step as far as the linearised equation is: where that
    is stiff, a step is two of Newton's method for `f(y, x_{i+1}) = 0`. The correction
    of `u` is left out where it is larger than `u`: there `h` is too long for it. There
    is no control of the error but `ts`.

    !!! example

        ```python
        import jax.numpy as jnp
        from parafix.deer.jax import solve_ivp

        def f(y, x, params):
            return -params * y**3 + x

        ts = jnp.linspace(0.0, 2.0, 10_000)
        xs = 30 * jnp.sin(6 * ts)[:, None]
        ys = solve_ivp(f, jnp.zeros(1), xs, 10.0, ts)  # (10000, 1)
        ```

    **Arguments:**

    - `f`: `(y, x, params) -> dy/dt`, of the shape and dtype of `y0`; has to be
        differentiable twice.
    - `y0`: shape `(n,)`, real floats: the state at `ts[0]`.
    - `xs`: a pytree of arrays `(T, ...)`, the inputs at the times `ts`; `None` if `f`
        takes none.
    - `params`: handed to `f` as it is, and differentiated; any pytree.
    - `ts`: shape `(T,)`, increasing, `T >= 1`. Differentiated too.
    - `solver`: `"deer"`, or whatever [`parafix.deer.jax.scan`][] takes; `"auto"`
        chooses, `"sequential"` is the loop over the same steps.
    - `guess`: shape `(T, n)`, as what is returned; the
        [`parafix.core.jax.Solution`][] of an earlier solve; `"init"` for `y0` at all
        times, the default, or `"step"`.
    - All others: as in [`parafix.deer.jax.scan`][].

    **Returns:**

    `ys`, shape `(T, n)`, with `y0` as row 0; or `(ys, solution)`, if
    `return_solution`. Step `t`, in messages and in `solution`, leads to row `t + 1`.

    **Raises:**

    `TypeError` or `ValueError` for arguments that do not fit, and the sentence of the
    result (an `equinox.EquinoxRuntimeError`) where a solve fails and `throw` is true.

    ??? cite "Reference"

        Hochbruck, Ostermann and Schweitzer, "Exponential Rosenbrock-type methods", SIAM
        J. Numer. Anal. 47, 2009, the method of order three with two stages; with the
        difference of the inputs in place of a derivative in time. Solving linearised
        equations exactly between given times: Lim, Zhu, Selfridge and Kasim,
        "Parallelizing non-linear sequential models over the sequence length", ICLR
        2024.
    """
    y0 = checked_state(y0)
    ts = checked_times(ts, y0)
    xs = checked_inputs(xs, ts.shape[0])
    x = jax.tree.map(lambda x: x[0], xs)
    check_output(jax.eval_shape(f, y0, x, params), y0, "dy/dt")
    inputs = (
        jax.tree.map(lambda x: x[:-1], xs),
        jax.tree.map(lambda x: x[1:], xs),
        jnp.diff(ts),
    )
    out = seq1d(
        _Exponential(f),
        y0,
        inputs,
        params,
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


class _Exponential(eqx.Module):
    f: Callable

    def __call__(self, y, inputs, params):
        # The algebra is done in single precision at least.
        with jax.numpy_dtype_promotion("standard"):
            wide = jnp.result_type(y.dtype, jnp.float32)
        x_0, x_1, h = inputs
        f_0 = self.f(y, x_0, params).astype(wide)
        f_1, j = jacobian(lambda y, x: self.f(y, x, params), y, x_1)
        f_1, j, h = (x.astype(wide) for x in (f_1, j, h))
        one, ramp, square = h * responses(h * j)
        u = _apply(one, f_0) + _apply(ramp, f_1 - f_0)
        f_u = self.f(y + u.astype(y.dtype), x_1, params).astype(wide)
        more = _apply(square, f_u - f_1 - _apply(j, u))
        # A step is too long for a correction that is larger than what it corrects.
        serves = jnp.max(jnp.abs(more)) <= jnp.max(jnp.abs(u))
        return y + (u + jnp.where(serves, more, 0)).astype(y.dtype)


def _apply(a, v):
    # What GPUs do to float32 products by default leaves three digits of them.
    return jnp.matmul(a, v, precision=lax.Precision.HIGHEST)
