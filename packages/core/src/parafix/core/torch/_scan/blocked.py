import dataclasses
import math

import torch

from .abstract import AbstractScan
from .algebra import combine, compose, is_dense
from .sequential import SequentialScan


@dataclasses.dataclass(frozen=True)
class BlockedScan(AbstractScan):
    """Blocks side by side, steps inside a block one after the other.

    Every block is first solved from a zero state together with the product of its
    `a`; a short sequential scan over the blocks finds the true states between them;
    one more product per step adds what they contribute. Depth `O(block + T / block)`.

    **Arguments:**

    - `block`: the number of steps in a block; `None` takes the square root of `T`.
    """

    block: int | None = None

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 1:
            raise ValueError(f"`block` must be at least 1, got {self.block}.")

    def solve(self, a, b, init, reverse):
        if reverse:
            return self.solve(a.flip(0), b.flip(0), init, False).flip(0)
        length = b.shape[0]
        block = math.isqrt(length) if self.block is None else min(self.block, length)
        blocks = length // block
        constant = a.shape[0] == 1
        head = blocks * block
        x, last = _solve_blocks(
            a.unsqueeze(0) if constant else _split(a[:head], blocks),
            _split(b[:head], blocks),
            init,
            is_dense(a, b),
        )
        x = x.reshape(b[:head].shape)
        if head == length:
            return x
        rest = a if constant else a[head:]
        return torch.cat([x, SequentialScan().solve(rest, b[head:], last, False)])

    def reasons_against(self, a, b):
        del a, b
        return []


def _split(x, blocks):
    return x.reshape(blocks, x.shape[0] // blocks, *x.shape[1:])


def _solve_blocks(a, b, init, dense):
    """`b`: `(blocks, block, *batch, n)`; `a` likewise, or with ones for both axes."""
    steps = b.unbind(1)
    maps = [a[:, 0]] * len(steps) if a.shape[1] == 1 else a.unbind(1)
    product, x = maps[0], steps[0]
    products, locals_ = [product], [x]
    for a_s, b_s in zip(maps[1:], steps[1:], strict=True):
        product = compose(a_s, product, dense)
        x = combine(a_s, x, b_s)
        products.append(product)
        locals_.append(x)
    # The state with which each block ends, and so the one with which it starts.
    ends = SequentialScan().solve(product, x, init, False)
    starts = torch.cat([init.unsqueeze(0), ends[:-1]])
    states = [
        combine(product, starts, local)
        for product, local in zip(products, locals_, strict=True)
    ]
    return torch.stack(states, 1), ends[-1]
