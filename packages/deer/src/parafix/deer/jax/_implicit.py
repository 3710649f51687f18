"""One implicit step: a small dense equation, solved to rounding."""

from collections.abc import Callable

import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float

from parafix.core.jax import ImplicitAdjoint, jacobian, Newton, RESULTS, root_find


# Newton's method, from the state before, has ended long before that, or will not.
_MAX_STEPS = 50
# How many roundings of its terms an equation may be off by.
_ROUNDINGS = 64


def solve_equation(
    equation: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    start: Float[Array, " n"],
    linear_solver: lx.AbstractLinearSolver,
    size: Float[Array, " n"] | float = 0.0,
) -> Float[Array, " n"]:
    """`z` near `start` with `equation(z) = 0`; NaN throughout where none was found.

    Every equation holds to a few roundings of the terms that it is made of, which are
    estimated as `|J| |start| + |equation(start)| + size`: the differential equations of
    a small time step are large numbers, and the algebraic ones beside them are not.
    Derivatives are those of the implicit function theorem, of any order; none to
    `start`.
    """
    start = lax.stop_gradient(start)
    value, j = lax.stop_gradient(jacobian(lambda z, _: equation(z), start, None))
    rows = _nonzero(jnp.abs(j) @ jnp.abs(start) + jnp.abs(value) + size)
    # The first Newton step is the unit of the unknown: `start` does not blur it.
    step = jnp.linalg.solve(j / rows[:, None], -value / rows)
    step = jnp.where(jnp.isfinite(step).all(), step, 0)
    columns = _nonzero(jnp.abs(start) + jnp.max(jnp.abs(step), initial=0))

    def scaled(w):
        return equation(start + columns * w) / rows

    solution = root_find(
        scaled,
        step / columns,
        solver=Newton(
            rtol=0.0,
            atol=_ROUNDINGS * float(jnp.finfo(start.dtype).eps),
            linear_solver=linear_solver,
        ),
        adjoint=ImplicitAdjoint(linear_solver),
        max_steps=_MAX_STEPS,
        throw=False,
    )
    found = solution.result == RESULTS.successful
    return jnp.where(found, start + columns * solution.value, jnp.nan)


def _nonzero(x):
    return lax.stop_gradient(jnp.where(x > 0, x, 1))
