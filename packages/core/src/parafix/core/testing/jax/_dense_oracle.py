from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def affine(y: Any, args: Any) -> Any:
    """`M z + b`."""
    return args["matrix"] @ y + args["offset"]


def tanh_layer(y: Any, args: Any) -> Any:
    """`tanh(M z + b)`."""
    return jnp.tanh(args["matrix"] @ y + args["offset"])


def affine_tree(y: Any, args: Any) -> Any:
    """`M z + b`, where `z` are the entries of all leaves, each of its own dtype."""
    leaves, structure = jax.tree.flatten(y)
    wide = args["offset"].dtype
    z = affine(jnp.concatenate([leaf.ravel().astype(wide) for leaf in leaves]), args)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = [
        part.reshape(leaf.shape).astype(leaf.dtype)
        for part, leaf in zip(jnp.split(z, ends), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, parts)


def dense_solution(fn: Callable, args: Any) -> np.ndarray:
    """The fixed point of `affine` or `tanh_layer`, by NumPy in float64.

    Linear problems by LU decomposition; the others by plain iteration, which comes
    near, and then Newton's method to 1e-14.
    """
    matrix, offset = (np.asarray(args[x], np.float64) for x in ("matrix", "offset"))
    eye = np.eye(len(offset))
    if fn is affine:
        return np.linalg.solve(eye - matrix, offset)
    if fn is not tanh_layer:
        raise ValueError(f"the fixed point of {fn!r} is not known")
    z = np.zeros_like(offset)
    for _ in range(50):
        z = np.tanh(matrix @ z + offset)
    for _ in range(50):
        f = np.tanh(matrix @ z + offset)
        z = z + np.linalg.solve(eye - (1 - f**2)[:, None] * matrix, f - z)
        if np.max(abs(np.tanh(matrix @ z + offset) - z), initial=0) < 1e-14:
            return z
    raise RuntimeError("Newton's method did not find the oracle's answer")


def dense_jacobian(fn: Callable, args: Any) -> np.ndarray:
    """`∂f/∂z` at the fixed point of `affine` or `tanh_layer`: `(n, n)`, float64."""
    slope = _slope(fn, dense_solution(fn, args))
    return slope[:, None] * np.asarray(args["matrix"], np.float64)


def dense_pullback(fn: Callable, args: Any, cotangent: Any) -> dict[str, np.ndarray]:
    """The gradient of `cotangent @ z` with respect to `args`, by dense algebra.

    The implicit function theorem: `w = (I - J)^-T cotangent`, then one pull through `f`
    at the fixed point.
    """
    z = dense_solution(fn, args)
    system = np.eye(len(z)) - dense_jacobian(fn, args)
    w = np.linalg.solve(system.T, np.asarray(cotangent)) * _slope(fn, z)
    return {"matrix": np.outer(w, z), "offset": w}


def dense_pushforward(fn: Callable, args: Any, tangents: Any) -> np.ndarray:
    """The tangent of the fixed point along `tangents` of `args`, by dense algebra."""
    z = dense_solution(fn, args)
    matrix, offset = (np.asarray(tangents[x]) for x in ("matrix", "offset"))
    right = _slope(fn, z) * (matrix @ z + offset)
    return np.linalg.solve(np.eye(len(z)) - dense_jacobian(fn, args), right)


def _slope(fn, z):
    return np.ones_like(z) if fn is affine else 1 - z**2
