import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """A recurrence of a batch and everything that a scan over it needs.

    **Attributes:**

    - `step`: `(params, carry, x) -> (carry, y)`.
    - `params`: its weights, a pytree.
    - `init`: the carry before the first step; leaves `(B, ...)`.
    - `xs`: the inputs, `(T, B, ...)`.
    """

    step: Callable[[Any, Any, Any], tuple[Any, Any]]
    params: Any
    init: Any
    xs: Any

    def bind(self, params: Any = None) -> Callable[[Any, Any], tuple[Any, Any]]:
        """`f(carry, x)`, closed over `params`."""
        params = self.params if params is None else params

        def f(carry, x):
            return self.step(params, carry, x)

        return f

    def take(self, length: int) -> "Recurrence":
        """The same recurrence over its first `length` inputs."""
        xs = pytree.tree_map(lambda x: x[:length], self.xs)
        return dataclasses.replace(self, xs=xs)


class _Random:
    def __init__(self, seed, dtype):
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def normal(self, *shape) -> Tensor:
        # The same numbers in every dtype.
        x = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return x.to(self.dtype)

    def weights(self, rows, columns):
        return self.normal(rows, columns) / columns**0.5


def tanh_cell(
    seed: int,
    length: int,
    size: int = 3,
    inputs: int = 2,
    samples: int = 2,
    dtype: torch.dtype = torch.float64,
) -> Recurrence:
    """`h' = tanh(W h + U x + b)`; the output is the new state."""
    random = _Random(seed, dtype)
    params = {
        "W": random.weights(size, size),
        "U": random.weights(size, inputs),
        "b": random.normal(size),
    }

    def step(params, h, x):
        h = torch.tanh(h @ params["W"].T + x @ params["U"].T + params["b"])
        return h, h

    init = random.normal(samples, size)
    return Recurrence(step, params, init, random.normal(length, samples, inputs))


def gru(
    seed: int,
    length: int,
    size: int = 3,
    inputs: int = 2,
    samples: int = 2,
    dtype: torch.dtype = torch.float64,
) -> Recurrence:
    """A gated recurrent unit; the output is a projection of the state."""
    random = _Random(seed, dtype)
    params = {
        "W": random.weights(3 * size, size),
        "U": random.weights(3 * size, inputs),
        "out": random.normal(size),
    }

    def step(params, h, x):
        reset_h, update_h, new_h = (h @ params["W"].T).chunk(3, -1)
        reset_x, update_x, new_x = (x @ params["U"].T).chunk(3, -1)
        reset = torch.sigmoid(reset_h + reset_x)
        update = torch.sigmoid(update_h + update_x)
        new = torch.tanh(new_x + reset * new_h)
        h = update * h + (1 - update) * new
        return h, h @ params["out"]

    init = random.normal(samples, size)
    return Recurrence(step, params, init, random.normal(length, samples, inputs))


def lstm(
    seed: int,
    length: int,
    size: int = 2,
    inputs: int = 2,
    samples: int = 2,
    dtype: torch.dtype = torch.float64,
) -> Recurrence:
    """A long short-term memory: a carry of two leaves, and the first is the output."""
    random = _Random(seed, dtype)
    params = {
        "W": random.weights(4 * size, size),
        "U": random.weights(4 * size, inputs),
    }

    def step(params, carry, x):
        gates = carry["h"] @ params["W"].T + x @ params["U"].T
        i, o, g, u = gates.chunk(4, -1)
        c = torch.sigmoid(g) * carry["c"] + torch.sigmoid(i) * torch.tanh(u)
        h = torch.sigmoid(o) * torch.tanh(c)
        return {"c": c, "h": h}, h

    init = {"c": random.normal(samples, size), "h": random.normal(samples, size)}
    return Recurrence(step, params, init, random.normal(length, samples, inputs))


def logistic(carry: Any, _: Any) -> tuple[Any, Any]:
    """The logistic map with `r = 3.9`: bounded, deterministic and chaotic."""
    carry = 3.9 * carry * (1 - carry)
    return carry, carry
