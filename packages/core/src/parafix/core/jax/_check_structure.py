"""Whether a declared structure of the Jacobian is true."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._chain import Chain
from ._custom_types import State
from ._structure import Dense


# Random states of the size of one, their negatives, small and large ones.
_SCALES = (1.0, -1.0, 0.1, -10.0, 10.0)


def check_structure(problem: Chain) -> None:
    """Compare the declared Jacobian of a chain with the whole one, at several points.

    The points are the initial state, and around it random states, some with their signs
    flipped, small ones and large ones, each with the input of another time. What a step
    does at no such point is not seen. Entries that are not finite say nothing, nor do
    those that are within the rounding errors of a step that saturates.

    **Arguments:**

    - `problem`: a [`parafix.core.jax.Chain`][] with concrete values.

    **Raises:**

    `ValueError` if the declaration is false: with the entry that is worst, and what
    stands there.
    """
    structure, size = problem.structure, problem.size
    if problem.length == 0 or size == 0:
        return
    z, xs = _points(problem)

    def both(z, x):
        declared = structure.jacobian(problem.step, z, x)[1]
        f, true = Dense().jacobian(problem.step, z, x)
        return structure.dense(declared, size), true, _rounding(problem, z, f)

    declared, true, rounding = map(np.asarray, jax.jit(jax.vmap(both))(z, xs))
    error = np.maximum(np.abs(declared - true) - rounding[..., None], 0)
    scale = np.maximum(np.abs(declared), np.abs(true))
    scale = np.where(np.isfinite(scale), scale, 0).max((1, 2), keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(np.isfinite(error), error, 0) / scale
    relative = np.where(scale > 0, relative, 0)
    # What stands where nothing should is told first: it falsifies the others, too.
    entire = structure.dense(jnp.ones(structure.shape(size), z.dtype), size)
    beyond = np.where(np.asarray(entire) == 0, relative, 0)
    if beyond.max() > _allowed(problem):
        relative = beyond
    point, row, column = np.unravel_index(np.argmax(relative), relative.shape)
    if relative[point, row, column] <= _allowed(problem):
        return
    raise ValueError(
        f"{_FALSE} Entry ({row}, {column}) is {true[point, row, column]:.6g} where the "
        f"structure has {declared[point, row, column]:.6g}, at the state "
        f"{np.asarray(z)[point]}."
    )


def verified(problem: Chain) -> Chain:
    """`problem`; at run time an error if some product shows its structure to be false.

    One product with a random vector at every point: of two matrices that differ, those
    agree with probability zero. Costs as much as some steps, whatever the length.
    """
    if isinstance(problem.structure, Dense):
        return problem
    # The structure is a property of the step, not of the point or of its derivatives.
    fixed = jax.tree.map(
        lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, problem
    )
    init = eqx.error_if(problem.init, ~_holds(fixed), f"{_FALSE} {_REMEDY}")
    return eqx.tree_at(lambda p: p.init, problem, init)


_FALSE = "The declared structure of the Jacobian is false."
_REMEDY = (
    "The step couples entries of the state which the structure keeps apart, or a "
    "supplied Jacobian is not that of the step; `check_structure` names the entry."
)


def _holds(problem: Chain) -> Bool[Array, ""]:
    structure = problem.structure
    v = _random(1, problem.size, problem.init.dtype)
    v = v + jnp.sign(v)

    def agrees(z, x):
        f, true = jax.jvp(lambda z: problem.step(z, x), (z,), (v,))
        _, a = structure.jacobian(problem.step, z, x)
        declared = structure.apply(a, v)
        scale = structure.apply(jnp.abs(a), jnp.abs(v)) + jnp.abs(true)
        scale = jnp.max(jnp.where(jnp.isfinite(scale), scale, 0))
        rounding = _rounding(problem, z, f) * jnp.abs(v).max()
        # False for what is not finite.
        return ~(jnp.abs(declared - true) > _allowed(problem) * scale + rounding).any()

    return jax.vmap(agrees)(*_points(problem)).all()


def _allowed(problem: Chain) -> float:
    return float(problem.eps.max()) ** 0.5


def _rounding(problem: Chain, z: State, f: State) -> State:
    """How far rows of the Jacobian of a step may be from the truth where it saturates.

    Its derivative is lost in rounding then: in some hundred `eps` of the slope by which
    `f = step(z, x)` has come about over the distance `z`.
    """
    size = jnp.where(jnp.isfinite(f), jnp.abs(f), 0)
    distance = jnp.maximum(jnp.abs(z).mean(), 0.1)
    return 256 * float(problem.eps.max()) * size / distance


def _points(problem: Chain) -> tuple[Float[Array, "p n"], Any]:
    init = problem.init
    others = [s * _random(i, init.size, init.dtype) for i, s in enumerate(_SCALES)]
    pairs = zip(_SCALES, others, strict=True)
    z = jnp.stack([init, *(x + (init if s > 0 else -init) for s, x in pairs)])
    times = np.linspace(0, problem.length - 1, len(z)).astype(int)
    return z, jax.tree.map(lambda x: x[times], problem.xs)


def _random(seed: int, size: int, dtype: Any) -> Float[Array, " n"]:
    # Constants of the program: the same points in every run.
    numbers = np.random.default_rng(seed).standard_normal(size)
    return jnp.asarray(numbers, dtype)
