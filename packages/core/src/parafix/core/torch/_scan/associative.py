import dataclasses

import torch

from .abstract import AbstractScan
from .algebra import combine, compose, is_dense


# Up to here steps one after the other are fewer calls than further halvings: a step is
# one call, a halving three.
_SHORT = 8


@dataclasses.dataclass(frozen=True)
class AssociativeScan(AbstractScan):
    """Odd-even (cyclic) reduction: depth `O(log T)`, work `O(T n^3)` if dense.

    Neighbouring maps are composed in pairs, the recurrence of half the length is
    solved, and the states between are filled in. Unlike a scan over the monoid of
    affine maps, the products of `a` are needed on the way up only, which halves the
    number of matrix products (Blelloch, "Prefix sums and their applications", 1990;
    Hockney, "A fast direct solution of Poisson's equation", 1965).
    """

    def solve(self, a, b, init, reverse):
        first = -1 if reverse else 0
        b = b.clone(memory_format=torch.contiguous_format)
        b[first] = combine(a[first], init, b[first])
        out = torch.empty_like(b)
        _odd_even(a, b, out, is_dense(a, b), reverse)
        return out

    def reasons_against(self, a, b):
        del a, b
        return []


def _odd_even(a, b, out, dense, reverse):
    """Writes the states to `out`. The first of them is its `b`; its `a` is not read."""
    length = b.shape[0]
    constant = a.shape[0] == 1
    if length <= _SHORT:
        maps = [a[0]] * length if constant else a.unbind(0)
        steps, states = b.unbind(0), out.unbind(0)
        first, *times = range(length)[:: -1 if reverse else 1]
        x = states[first].copy_(steps[first])
        for t in times:
            x = combine(maps[t], x, steps[t], out=states[t])
        return
    odd, even, rest, before = _places(length, reverse)
    late, early, between = (a, a, a) if constant else (a[odd], a[even], a[rest])
    # x_{2i+1} = a_{2i+1} a_{2i} x_{2i-1} + a_{2i+1} b_{2i} + b_{2i+1}
    _odd_even(
        compose(late, early, dense),
        combine(late, b[even], b[odd]),
        out[odd],
        dense,
        reverse,
    )
    # x_{2i} = a_{2i} x_{2i-1} + b_{2i}
    first = -1 if reverse else 0
    out[first].copy_(b[first])
    combine(between, out[before], b[rest], out=out[rest])


def _places(length, reverse):
    """The odd steps, those before them, the even ones but the first, those before them.

    Counted from the end if `reverse`: turning the arrays round would copy them.
    """
    if not reverse:
        whole = length - length % 2
        return (
            slice(1, None, 2),
            slice(0, whole, 2),
            slice(2, None, 2),
            slice(1, length - 1, 2),
        )
    skip = length % 2
    return (
        slice(skip, length - 1, 2),
        slice(skip + 1, None, 2),
        slice(1 - skip, length - 2, 2),
        slice(2 - skip, length - 1, 2),
    )
