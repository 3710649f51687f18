import math

import jax.numpy as jnp
from jax import lax

from .abstract import AbstractScan
from .algebra import apply, compose, is_dense
from .sequential import SequentialScan


class BlockedScan(AbstractScan):
    """Blocks side by side, steps inside a block one after the other.

    Every block is first solved from a zero state together with the product of its
    `a`; a short sequential scan over the blocks finds the true states between them;
    one more product per step adds what they contribute. Depth `O(block + T / block)`.
    """

    block: int | None = None

    def __check_init__(self):
        if self.block is not None and self.block < 1:
            raise ValueError(f"`block` must be at least 1, got {self.block}.")

    def solve(self, a, b, init, reverse):
        if reverse:
            return jnp.flip(self.solve(jnp.flip(a, 0), jnp.flip(b, 0), init, False), 0)
        length = b.shape[0]
        block = math.isqrt(length) if self.block is None else min(self.block, length)
        blocks = length // block
        dense = is_dense(a, b)
        constant = a.shape[0] == 1
        head = blocks * block
        x, last = _solve_blocks(
            a if constant else _split(a[:head], blocks),
            _split(b[:head], blocks),
            init,
            dense,
            constant,
        )
        x = x.reshape(b[:head].shape)
        if head == length:
            return x
        tail = SequentialScan().solve(
            a if constant else a[head:], b[head:], last, False
        )
        return jnp.concatenate([x, tail])

    def reasons_against(self, a, b):
        del a, b
        return []


BlockedScan.__init__.__doc__ = """**Arguments:**

- `block`: the number of steps in a block; `None` takes the square root of `T`.
"""


def _split(x, blocks):
    return x.reshape(blocks, x.shape[0] // blocks, *x.shape[1:])


def _solve_blocks(a, b, init, dense, constant):
    """`b`: `(blocks, block, *batch, n)`; `a` likewise, or constant in time."""

    def body(carry, inputs):
        product, x = carry
        a_s, b_s = inputs
        if constant:
            a_s = a
        product = compose(a_s, product, dense)
        x = apply(a_s, x) + b_s
        return (product, x), (product, x)

    one = jnp.eye(b.shape[-1], dtype=b.dtype) if dense else jnp.ones((), b.dtype)
    shape = a.shape if constant else (a.shape[0], *a.shape[2:])
    product0 = jnp.broadcast_to(one, shape)
    by_step = jnp.moveaxis(b, 1, 0)
    a_by_step = None if constant else jnp.moveaxis(a, 1, 0)
    (product, local), (products, locals_) = lax.scan(
        body, (product0, jnp.zeros_like(b[:, 0])), (a_by_step, by_step)
    )
    # The state with which each block ends, and so the one with which it starts.
    ends = SequentialScan().solve(product, local, init, False)
    starts = jnp.concatenate([init[None], ends[:-1]])
    x = apply(products, jnp.broadcast_to(starts, locals_.shape)) + locals_
    return jnp.moveaxis(x, 0, 1), ends[-1]
