from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree


Weights = dict[str, Float[Array, "..."]]

# What GPUs do to float32 products by default leaves three digits of them, and the
# tolerance asks for five.
_PRECISION = lax.Precision.HIGHEST


def _product(a, x):
    return jnp.matmul(a, x, precision=_PRECISION)


def _gru(weights, h, x):
    """Cho et al. 2014, equations 5 to 8, with the reset gate where cuDNN has it."""
    a = _product(weights["input"], x) + weights["bias"]
    s = _product(weights["state"], h)
    reset, update = jax.nn.sigmoid(a[:2] + s[:2])
    candidate = jnp.tanh(a[2] + reset * s[2])
    h = update * h + (1 - update) * candidate
    return h, h


def _lstm(weights, carry, x):
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000."""
    h, c = carry
    a = _product(weights["input"], x) + weights["bias"] + _product(weights["state"], h)
    enter, forget, leave = jax.nn.sigmoid(a[:3])
    c = forget * c + enter * jnp.tanh(a[3])
    h = leave * jnp.tanh(c)
    return (h, c), h


def _tanh(weights, h, x):
    """Elman 1990, with tanh."""
    (u,), (w,), (b,) = weights["state"], weights["input"], weights["bias"]
    h = jnp.tanh(_product(u, h) + _product(w, x) + b)
    return h, h


CELLS: dict[str, Callable[[Weights, Any, Float[Array, " d"]], tuple[Any, Any]]] = {
    "gru": _gru,
    "lstm": _lstm,
    "tanh": _tanh,
}


def initial(cell: str, hidden: int, dtype: Any) -> PyTree[Float[Array, " n"]]:
    """The carry before the first step: zeros, for the LSTM a pair of them."""
    zeros = jnp.zeros(hidden, dtype)
    return (zeros, zeros) if cell == "lstm" else zeros


def prediction_error(
    weights: Weights, states: Float[Array, "T n"], samples: Float[Array, "T c"]
) -> Float[Array, ""]:
    """Mean square of what a linear readout misses of the next sample."""
    predicted = _product(states[:-1], weights["readout"].T) + weights["offset"][None]
    return jnp.mean((predicted - samples[1:]) ** 2)
