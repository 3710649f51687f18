"""Where the sweeps of an implicit recurrence start."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from parafix.core.jax import affine_scan, jacobian


# Quadratic convergence is over by then, or will not come.
_MAX_STEPS = 50


def linearised_guess(
    residual: Callable[[Float[Array, "q n"], Any], Float[Array, " n"]],
    y0s: Float[Array, "p n"],
    xs: PyTree[Array],
    length: int,
) -> tuple[Float[Array, "T n"], Int[Array, ""]]:
    """States at all times, by Newton's method on all equations at once; and its steps.

    `residual` takes `q = p + 1` states, the latest first. What is linearised is the
    equation of a step at the present states, both the new one and those before; the
    solution of an implicit step, of which sweeps take the Jacobian, is less linear by
    far: where an algebraic equation holds, it moves by `1 / h` times what the state
    before is off by. Here is nothing to confirm a solution, and after `k` steps no
    state is final, so this is where sweeps start. From `y0s[-1]` at all times.

    ??? cite "Reference"

        Lim, Zhu, Selfridge and Kasim, "Parallelizing non-linear sequential models over
        the sequence length", ICLR 2024, section 3.1, with several lags.
    """
    order, size = y0s.shape
    dtype = y0s.dtype
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

    def improved(z):
        lag = jnp.concatenate([before[None], z[:-1]])
        at = jax.vmap(lambda lag, x: jacobian(step, lag, x))
        f, a = at(lag, (xs, z[:, :size]))
        return affine_scan(a, f - z, jnp.zeros_like(before))

    def going(carry):
        _, moved, count = carry
        return moved & (count < _MAX_STEPS)

    def body(carry):
        z, _, count = carry
        d = improved(z)
        # From a step like that on, the next one is the size of rounding.
        small = float(jnp.finfo(dtype).eps) ** 0.5 * jnp.max(jnp.abs(z), initial=0)
        moved = jnp.max(jnp.abs(d), initial=0) > small
        fine = jnp.isfinite(d).all()
        return jnp.where(fine, z + d, z), moved & fine, count + 1

    z = jnp.broadcast_to(before, (length, before.shape[0]))
    z, _, count = lax.while_loop(going, body, (z, jnp.array(True), jnp.array(0)))
    return z[:, :size], count
