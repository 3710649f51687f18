"""Where a differential-algebraic equation may start."""

from collections.abc import Callable

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from parafix.core.jax import jacobian

from ._implicit import solve_equation


def consistent(
    f: Callable[[Float[Array, " n"], Float[Array, " n"]], Float[Array, " n"]],
    y0: Float[Array, " n"],
) -> Float[Array, " n"]:
    """`y` near `y0` for which there is a slope `v` with `f(v, y) = 0`; else NaN.

    With `M = df/dv` and `N = df/dy` at `(0, y0)`: what the slope can settle it does.
    What it cannot is settled by the part of `y` without a slope, the null space of `M`
    (multipliers and other algebraic variables), and only what is left by a change of
    the other part. Each by least squares, so that the change is the smallest, and any
    of the matrices may be singular. Along these directions the equation is then solved
    to rounding; a `y0` that is consistent stays as it is.
    """
    slope = jnp.zeros_like(y0)
    value, m = jacobian(lambda v, _: f(v, y0), slope, None)
    _, n = jacobian(lambda y, _: f(slope, y), y0, None)
    unit = jnp.eye(y0.shape[0], dtype=y0.dtype)
    size = jnp.max(jnp.abs(n), initial=0)
    m_inverse = _inverse(m, jnp.max(jnp.abs(m), initial=0))
    # Of the equations: what the slope does not reach. Of `y`: what has a slope.
    rest, moving = unit - m @ m_inverse, m_inverse @ m
    algebraic = rest @ n @ (unit - moving)
    algebraic_inverse = _inverse(algebraic, size)
    rest = rest - algebraic @ algebraic_inverse
    to_y = _inverse(rest @ n @ moving, size)
    to_y = to_y + algebraic_inverse @ (unit - n @ to_y)
    to_slope = m_inverse @ (unit - n @ to_y)

    def equation(w):
        return f(to_slope @ w, y0 + to_y @ w)

    # Where equations say nothing new, the change is the smallest again.
    w = solve_equation(
        equation,
        jnp.zeros_like(value),
        lx.AutoLinearSolver(well_posed=False),
        jnp.abs(n) @ jnp.abs(y0),
    )
    return y0 + to_y @ w


def _inverse(a, size):
    """The pseudo-inverse of `a`, in which what is rounding of `size` counts as zero."""
    rounding = float(jnp.finfo(a.dtype).eps) ** 0.75
    there = jnp.max(jnp.abs(a), initial=0) > rounding * size
    return jnp.linalg.pinv(jnp.where(there, a, 0), rtol=rounding)
