import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


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
