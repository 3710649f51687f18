from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def affine(y: Tensor, args: Any) -> Tensor:
    """`M z + b` for every sample: `M` is `(B, n, n)`, `b` is `(B, n)`.

    Sums of products, whose bits do not depend on the size of the batch.
    """
    return (args["matrix"] * y[:, None]).sum(-1) + args["offset"]


def tanh_layer(y: Tensor, args: Any) -> Tensor:
    """`tanh(M z + b)`."""
    return torch.tanh(affine(y, args))


def affine_tree(y: tuple[Tensor, ...], args: Any) -> tuple[Tensor, ...]:
    """`M z + b`, where `z` are the entries of all leaves, each of its own dtype."""
    wide = args["offset"].dtype
    flat = [leaf.reshape(len(leaf), -1).to(wide) for leaf in y]
    z = affine(torch.cat(flat, 1), args)
    parts = z.split([leaf.shape[1] for leaf in flat], 1)
    return tuple(
        part.reshape(leaf.shape).to(leaf.dtype)
        for part, leaf in zip(parts, y, strict=True)
    )


def dense_solution(fn: Callable, args: Any) -> np.ndarray:
    """The fixed points of `affine` or `tanh_layer`, `(B, n)`, by NumPy in float64.

    Linear problems by LU decomposition; the others by plain iteration, which comes
    near, and then Newton's method to 1e-14.
    """
    matrix, offset = (_as_numpy(args[x]) for x in ("matrix", "offset"))
    eye = np.eye(offset.shape[1])
    if fn is affine:
        return _solve(eye - matrix, offset)
    if fn is not tanh_layer:
        raise ValueError(f"the fixed point of {fn!r} is not known")

    def image(z):
        return np.tanh(_times(matrix, z) + offset)

    z = np.zeros_like(offset)
    for _ in range(50):
        z = image(z)
    for _ in range(50):
        f = image(z)
        z = z + _solve(eye - (1 - f**2)[..., None] * matrix, f - z)
        if np.max(abs(image(z) - z), initial=0) < 1e-14:
            return z
    raise RuntimeError("Newton's method did not find the oracle's answer")


def dense_jacobian(fn: Callable, args: Any) -> np.ndarray:
    """`∂f/∂z` at the fixed points of `affine` or `tanh_layer`: `(B, n, n)`, float64."""
    slope = _slope(fn, dense_solution(fn, args))
    return slope[..., None] * _as_numpy(args["matrix"])


def dense_pullback(fn: Callable, args: Any, cotangent: Any) -> dict[str, np.ndarray]:
    """The gradient of `sum(cotangent * z)` with respect to `args`, by dense algebra.

    The implicit function theorem: `w = (I - J)^-T cotangent`, then one pull through `f`
    at the fixed point.
    """
    z = dense_solution(fn, args)
    system = np.eye(z.shape[1]) - dense_jacobian(fn, args)
    w = _solve(system.swapaxes(1, 2), _as_numpy(cotangent)) * _slope(fn, z)
    return {"matrix": w[..., None] * z[:, None], "offset": w}


def dense_pushforward(fn: Callable, args: Any, tangents: Any) -> np.ndarray:
    """The tangents of the fixed points along `tangents` of `args`, by dense algebra."""
    z = dense_solution(fn, args)
    matrix, offset = (_as_numpy(tangents[x]) for x in ("matrix", "offset"))
    right = _slope(fn, z) * (_times(matrix, z) + offset)
    return _solve(np.eye(z.shape[1]) - dense_jacobian(fn, args), right)


def _as_numpy(x):
    x = x.detach().cpu() if isinstance(x, Tensor) else x
    return np.asarray(x, np.float64)


def _times(matrix, z):
    return (matrix @ z[..., None])[..., 0]


def _solve(matrix, right):
    return np.linalg.solve(matrix, right[..., None])[..., 0]


def _slope(fn, z):
    return np.ones_like(z) if fn is affine else 1 - z**2
