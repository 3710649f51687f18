"""Where the sweeps of an implicit recurrence start."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from parafix.core.jax import affine_scan, jacobian


# Quadratic convergence is over by then, or will not come.
_MAX_STEPS = 50


class Linearised(eqx.Module):
    """States `(T, n)`; what rounding of the states before makes of each entry `(n,)`;
    and the number of steps."""

    states: Float[Array, "T n"]
    rounding: Float[Array, " n"]
    num_steps: Int[Array, ""]


def linearised(
    residual: Callable[[Float[Array, "q n"], Any], Float[Array, " n"]],
    y0s: Float[Array, "p n"],
    xs: PyTree[Array],
    guess: Float[Array, "T n"],
) -> Linearised:
    """Newton's method on all equations at once, from `guess`.

    `residual` takes `q = p + 1` states, the latest first. What is linearised is the
    equation of a step at the present states, both the new one and those before. The
    solution of an implicit step, of which sweeps take the Jacobian, is less linear by
    far: where an algebraic equation holds, it moves by `1 / h` times what the state
    before is off by. Here is nothing to confirm a solution, and after `k` steps no
    state is final, so this is where sweeps start.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024, with several shifts.
    """
    order, size = y0s.shape
    eps = float(jnp.finfo(y0s.dtype).eps)
    before = jnp.flip(y0s, 0).ravel()

    def step(lags, inputs):
        # One Newton step for the new state, as a function of those before.
        x, y = inputs
        lags = lags.reshape(order, size)

        def equation(y):
            return residual(jnp.concatenate([y[None], lags]), x)

        value, j = jacobian(lambda y, _: equation(y), y, None)
        new = y - jnp.linalg.solve(lax.stop_gradient(j), value)
        return jnp.concatenate([new[None], lags[:-1]]).ravel()

    def going(carry):
        _, _, moved, count = carry
        return moved & (count < _MAX_STEPS)

    def body(carry):
        z, rounding, _, count = carry
        lag = jnp.concatenate([before[None], z[:-1]])
        f, a = jax.vmap(lambda lag, x: jacobian(step, lag, x))(lag, (xs, z[:, :size]))
        d = affine_scan(a, f - z, jnp.zeros_like(before))
        # From a step like that on, the next one is the size of rounding.
        small = eps**0.5 * jnp.max(jnp.abs(z))
        moved = jnp.max(jnp.abs(d)) > small
        fine = jnp.isfinite(d).all()
        made = eps * (jnp.abs(a[:, :size]) * jnp.abs(lag)[:, None]).sum(-1).max(0)
        rounding = jnp.where(fine, made, rounding)
        return jnp.where(fine, z + d, z), rounding, moved & fine, count + 1

    # The lags at all times, of which the first `n` entries are the states.
    whole = jnp.concatenate([y0s, guess])
    z = jnp.concatenate(
        [whole[order - k : len(whole) - k] for k in range(order)], axis=1
    )
    start = (z, jnp.zeros_like(y0s[0]), jnp.array(True), jnp.array(0))
    z, rounding, _, count = lax.while_loop(going, body, start)
    return Linearised(z[:, :size], rounding, count)
