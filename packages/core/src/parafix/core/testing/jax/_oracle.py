from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def reference_scan(
    f: Callable, init: Any, xs: Any = None, length: int | None = None, **options: Any
) -> tuple[Any, Any, Any]:
    """`jax.lax.scan`, and the carries after every step: `(carry, ys, carries)`."""

    def with_carry(carry, x):
        carry, y = f(carry, x)
        return carry, (y, carry)

    carry, (ys, carries) = lax.scan(with_carry, init, xs, length, **options)
    return carry, ys, carries


def python_loop(
    f: Callable, init: Any, xs: Any, *, reverse: bool = False
) -> tuple[Any, Any]:
    """What `jax.lax.scan(f, init, xs)` means, as a loop in Python."""
    length = len(jax.tree.leaves(xs)[0])
    carry, ys = init, []
    for t in reversed(range(length)) if reverse else range(length):
        carry, y = f(carry, jax.tree.map(lambda x, t=t: x[t], xs))
        ys.append(y)
    if reverse:
        ys.reverse()
    return carry, jax.tree.map(lambda *y: jnp.stack(y), *ys)


def loop_affine_scan(
    a: Any, b: Any, init: Any = None, *, reverse: bool = False
) -> np.ndarray:
    """`x_t = a_t x_{t-1} + b_t` in NumPy, one step after the other."""
    a, b = np.asarray(a), np.asarray(b)
    dense = a.ndim == b.ndim + 1
    a = np.broadcast_to(a, (*b.shape, b.shape[-1]) if dense else b.shape)
    dtype = np.result_type(a, b, *(() if init is None else (np.asarray(init),)))
    out = np.zeros(b.shape, dtype)
    x = None if init is None else np.asarray(init)
    for t in range(len(b))[:: -1 if reverse else 1]:
        if x is None:
            x = b[t]
        else:
            product = (a[t] @ x[..., None])[..., 0] if dense else a[t] * x
            x = product + b[t]
        out[t] = x
    return out


def dense_affine_scan(
    a: Any, b: Any, init: Any = None, *, reverse: bool = False
) -> jax.Array:
    """The same as one linear system `L x = b`, by LU decomposition.

    Differentiable by JAX's own rules for that, to any order.
    """
    length, *batch, size = b.shape
    if b.size == 0:
        return b
    if a.ndim == b.ndim:
        a = jnp.vectorize(jnp.diag, signature="(n)->(n,n)")(a)
    a = jnp.broadcast_to(a, (*b.shape, size))
    init = jnp.zeros(b.shape[1:], b.dtype) if init is None else init
    if reverse:
        a, b = jnp.flip(a, 0), jnp.flip(b, 0)
    later = jnp.arange(1, length)

    def solve(a, b, init):
        matrix = jnp.zeros((length, size, length, size), b.dtype)
        matrix = matrix.at[later, :, later - 1, :].set(-a[1:])
        matrix = matrix.reshape(length * size, length * size)
        matrix = matrix + jnp.eye(length * size, dtype=b.dtype)
        b = b.at[0].add(a[0] @ init)
        return jnp.linalg.solve(matrix, b.ravel()).reshape(length, size)

    for axis in range(len(batch)):
        del axis
        solve = jax.vmap(solve, in_axes=(1, 1, 0), out_axes=1)
    x = solve(a, b, init)
    return jnp.flip(x, 0) if reverse else x


def directional_derivative(
    function: Callable[[Any], Any], point: Any, direction: Any, step: float = 1e-2
) -> Any:
    """The derivative of `function` at `point` along `direction`, by differences.

    Six evaluations, error `O(step^6)`: about ten digits in float64.
    """

    def at(shift):
        return function(jax.tree.map(lambda x, v: x + shift * v, point, direction))

    def combine(*values):
        weights = (-1, 9, -45, 45, -9, 1)
        return sum(w * v for w, v in zip(weights, values, strict=True)) / (60 * step)

    values = [at(step * shift) for shift in (-3, -2, -1, 1, 2, 3)]
    return jax.tree.map(combine, *values)
