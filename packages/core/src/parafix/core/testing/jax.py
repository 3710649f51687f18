"""Seeded recurrences, oracles and comparisons for the JAX backend.

Nothing here uses the library under test, except for the names of types: an oracle that
shares code with what it judges judges nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


__all__ = [
    "CallCounter",
    "Recurrence",
    "assert_close",
    "assert_identical",
    "dense_affine_scan",
    "directional_derivative",
    "gru",
    "logistic",
    "loop_affine_scan",
    "lstm",
    "python_loop",
    "reference_scan",
    "tanh_cell",
    "temporary_bytes",
]


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """A recurrence and everything that a scan over it needs.

    **Attributes:**

    - `step`: `(params, carry, x) -> (carry, y)`.
    - `params`: its weights, a pytree.
    - `init`: the carry before the first step.
    - `xs`: the inputs, with time as the first axis of every leaf.
    """

    step: Callable[[Any, Any, Any], tuple[Any, Any]]
    params: Any
    init: Any
    xs: Any

    def bind(self, params: Any = None) -> Callable[[Any, Any], tuple[Any, Any]]:
        """`f(carry, x)` as `jax.lax.scan` takes it, closed over `params`."""
        params = self.params if params is None else params

        def f(carry, x):
            return self.step(params, carry, x)

        return f

    def take(self, length: int) -> "Recurrence":
        """The same recurrence over its first `length` inputs."""
        return dataclasses.replace(self, xs=jax.tree.map(lambda x: x[:length], self.xs))


def _weights(key, rows, columns, dtype):
    return jax.random.normal(key, (rows, columns), dtype) / float(columns) ** 0.5


def tanh_cell(
    key: Any, length: int, size: int = 3, inputs: int = 2, dtype: Any = jnp.float64
) -> Recurrence:
    """`h' = tanh(W h + U x + b)`; the output is the new state."""
    keys = jax.random.split(key, 5)
    params = {
        "W": _weights(keys[0], size, size, dtype),
        "U": _weights(keys[1], size, inputs, dtype),
        "b": jax.random.normal(keys[2], (size,), dtype),
    }

    def step(params, h, x):
        h = jnp.tanh(params["W"] @ h + params["U"] @ x + params["b"])
        return h, h

    init = jax.random.normal(keys[3], (size,), dtype)
    return Recurrence(
        step, params, init, jax.random.normal(keys[4], (length, inputs), dtype)
    )


def gru(
    key: Any, length: int, size: int = 3, inputs: int = 2, dtype: Any = jnp.float64
) -> Recurrence:
    """A gated recurrent unit; the output is a projection of the state."""
    keys = jax.random.split(key, 5)
    params = {
        "W": _weights(keys[0], 3 * size, size, dtype),
        "U": _weights(keys[1], 3 * size, inputs, dtype),
        "out": jax.random.normal(keys[2], (size,), dtype),
    }

    def step(params, h, x):
        reset_h, update_h, new_h = jnp.split(params["W"] @ h, 3)
        reset_x, update_x, new_x = jnp.split(params["U"] @ x, 3)
        reset = jax.nn.sigmoid(reset_h + reset_x)
        update = jax.nn.sigmoid(update_h + update_x)
        new = jnp.tanh(new_x + reset * new_h)
        h = update * h + (1 - update) * new
        return h, params["out"] @ h

    init = jax.random.normal(keys[3], (size,), dtype)
    return Recurrence(
        step, params, init, jax.random.normal(keys[4], (length, inputs), dtype)
    )


def lstm(
    key: Any, length: int, size: int = 2, inputs: int = 2, dtype: Any = jnp.float64
) -> Recurrence:
    """A long short-term memory: a carry of two leaves, and the first is the output."""
    keys = jax.random.split(key, 5)
    params = {
        "W": _weights(keys[0], 4 * size, size, dtype),
        "U": _weights(keys[1], 4 * size, inputs, dtype),
    }

    def step(params, carry, x):
        gates = params["W"] @ carry["h"] + params["U"] @ x
        i, o, g, u = jnp.split(gates, 4)
        c = jax.nn.sigmoid(g) * carry["c"] + jax.nn.sigmoid(i) * jnp.tanh(u)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return {"c": c, "h": h}, h

    init = {
        "c": jax.random.normal(keys[2], (size,), dtype),
        "h": jax.random.normal(keys[3], (size,), dtype),
    }
    return Recurrence(
        step, params, init, jax.random.normal(keys[4], (length, inputs), dtype)
    )


def logistic(carry: Any, _: Any) -> tuple[Any, Any]:
    """The logistic map with `r = 3.9`: bounded, deterministic and chaotic."""
    carry = 3.9 * carry * (1 - carry)
    return carry, carry


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


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Same structure, shapes and dtypes, and values within `tolerance`.

    The unit of a leaf is its largest entry, or one. Integers, keys, and the places of
    NaN and infinity must be equal.
    """
    _assert_same_types(actual, expected)
    for path, x, y in _pairs(actual, expected):
        if not np.issubdtype(y.dtype, np.inexact):
            np.testing.assert_array_equal(x, y, err_msg=path)
            continue
        finite = np.abs(y[np.isfinite(y)])
        unit = max(1.0, float(finite.max())) if finite.size else 1.0
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * unit, err_msg=path)


def assert_identical(actual: Any, expected: Any) -> None:
    """Same structure, shapes and dtypes, and the same bits in every leaf."""
    _assert_same_types(actual, expected)
    for path, x, y in _pairs(actual, expected):
        if x.tobytes() != y.tobytes():
            np.testing.assert_array_equal(x, y, err_msg=path)
            raise AssertionError(f"{path}: equal numbers with other bits")


def _assert_same_types(actual, expected):
    structures = jax.tree.structure(actual), jax.tree.structure(expected)
    assert structures[0] == structures[1], structures
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        types = [(jnp.shape(z), jnp.asarray(z).dtype) for z in (x, y)]
        assert types[0] == types[1], types


def _pairs(actual, expected):
    leaves = jax.tree_util.tree_leaves_with_path(actual)
    for (path, x), y in zip(leaves, jax.tree.leaves(expected), strict=True):
        x, y = map(_as_numpy, (x, y))
        yield jax.tree_util.keystr(path), x, y


def _as_numpy(x):
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype in (jnp.bfloat16, jnp.float16):
        x = x.astype(jnp.float32)
    return np.asarray(x)


class CallCounter:
    """`function`, and how many times Python has called it: once for every trace."""

    def __init__(self, function: Callable):
        self.function = function
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def temporary_bytes(function: Callable, *args: Any) -> int:
    """The scratch memory that the compiled `function` asks for. Nothing is run."""
    compiled = jax.jit(function).lower(*args).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise RuntimeError("this backend does not say what memory a program needs")
    return analysis.temp_size_in_bytes
