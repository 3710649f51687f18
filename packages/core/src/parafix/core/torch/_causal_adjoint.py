"""Derivatives of a causal solve at its solution."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._adjoint import AbstractDenseProblem, AbstractDenseTangent
from ._capture import Autocast
from ._iteration import bare, Outcome
from ._linear import looks
from ._rootfinders import FixedPoint


@dataclasses.dataclass(frozen=True)
class _Nilpotent(AbstractDenseTangent):
    """`t = J t + b` by its own sweeps.

    Some power of `J` is zero, so as many sweeps as there are entries always suffice,
    and as many as `f` is deep do. Its transpose is a causal problem from the last
    entry to the first, and nilpotent, too.
    """

    length: int

    def solve(self, operator, b, throw, inverse):
        del throw, inverse
        t = b
        for step in range(self.length):
            new = operator(t) + b
            # An entry that is NaN stays so, and is no reason to go on.
            moved = bare((new != t) & ~(torch.isnan(new) & torch.isnan(t)))
            t = new
            if looks(step, moved.device) and not bool(moved.any()):
                break
        return t


@dataclasses.dataclass(frozen=True)
class _Solved(AbstractDenseProblem):
    """A problem whose guess is its solution."""

    def iterate(self, fn: Any, linearise: Any, z: Tensor, **options: Any) -> Outcome:
        del fn, linearise, options
        none = torch.zeros(z.shape[0], dtype=torch.int64, device=z.device)
        return Outcome(z, none, none, none, none, z.new_zeros(z.shape[0]), None)


def attach(
    fn: Callable[[Tensor], Tensor], z: Tensor, length: int, autocast: Autocast
) -> Tensor:
    """`z`, `(B, n)`, a solution of `z = fn(z)`, with its derivatives.

    They are those of a causal problem with `length` entries, in all that `fn` closes
    over, to every order. Where `z` is NaN, so are its tangents.
    """
    problem = _Solved(
        lambda z, exchange: fn(z),
        None,
        autocast,
        autocast.eps([z.dtype]),
        # Nobody asks it for anything.
        FixedPoint(0.0, 0.0),
        lambda z: z,
        1,
        False,
    )
    return _Nilpotent(length).apply(problem, z.detach()).z
