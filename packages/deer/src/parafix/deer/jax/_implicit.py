"""One implicit step: a small dense equation, solved to rounding."""

from collections.abc import Callable

import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float

from parafix.core.jax import ImplicitAdjoint, jacobian, Newton, root_find


# Newton's method, from the state before, has ended long before that, or will not.
_MAX_STEPS = 30
# How many roundings of its terms an equation may be off by.
_ROUNDINGS = 64


def solve_equation(
    equation: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    start: Float[Array, " n"],
    linear_solver: lx.AbstractLinearSolver,
    size: Float[Array, " n"] | float = 0.0,
) -> Float[Array, " n"]:
    """`z` near `start` with `equation(z) = 0`; NaN throughout where none was found.

    Every equation holds to a few roundings of the terms that it is made of: the
    differential equations of a small time step are large numbers, and the algebraic
    ones beside them are not. Terms are `|J|` times what an entry is and what the entry
    that moves most moves by, and `size`. Derivatives are those of the implicit function
    theorem, of any order; none to `start`.
    """
    start = lax.stop_gradient(start)
    tolerance = _ROUNDINGS * float(jnp.finfo(start.dtype).eps)

    def newton_step(z):
        value, j = jacobian(lambda z, _: equation(z), z, None)
        step = jnp.linalg.solve(j, -value)
        # Where equations say the same, there may be none.
        step = jnp.where(jnp.isfinite(step).all(), step, 0)
        return lax.stop_gradient((value, j, step))

    value, j, step = newton_step(start)
    # Units of the unknowns and of the equations. The change is what is solved for, so
    # that `start` does not blur it.
    columns = _nonzero(jnp.abs(start) + _largest(step))
    rows = _nonzero(jnp.abs(j) @ columns + jnp.abs(value) + size)
    newton = Newton(  # pyright: ignore[reportCallIssue]
        rtol=0.0, atol=tolerance, linear_solver=linear_solver
    )
    solution = root_find(
        lambda w: equation(start + columns * w) / rows,
        step / columns,
        solver=newton,
        adjoint=ImplicitAdjoint(linear_solver),
        max_steps=_MAX_STEPS,
        throw=False,
    )
    z = start + columns * solution.value
    # Whatever the units were: one more step, and then the terms that are there.
    _, j, step = newton_step(z)
    z = z + step
    terms = jnp.abs(j) @ (jnp.abs(z) + _largest(z - start)) + size
    solved = (jnp.abs(equation(z)) <= tolerance * terms).all()
    return jnp.where(solved & jnp.isfinite(z).all(), z, jnp.nan)


def _largest(x):
    return jnp.max(jnp.abs(x), initial=0)


def _nonzero(x):
    return lax.stop_gradient(jnp.where(x > 0, x, 1))
