"""The recurrences that the derivatives of a chain obey, and what they lead to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._calculus import alias, check_leaves, grads, is_inexact, LinearisedOperator
from ._chain import jacobian
from ._chain_map import AbstractChainMap


def recurrence(
    task: Any, transposed: bool, b: Tensor, lag: Tensor, tensors: Sequence[Tensor]
) -> Tensor:
    """The tangents of a chain, or with `transposed` its cotangents; a chunk at a time.

    For `x` and `b` of `T + 1` times, `x_0 = b_0` and `x_t = A_t x_{t-1} + b_t`, with
    the Jacobian blocks of `f` at `lag`. The transpose is `x_T = b_T` and
    `x_{t-1} = A_t^T x_t + b_{t-1}`.
    """
    map_ = task.map

    def solve(begin, end, b, init):
        here = map_.during(tensors, begin, end)
        if task.iterates:
            operator = LinearisedOperator(map_, lag[begin:end], here, transposed)
            return task.iterated(operator, b, init)
        a = jacobian(map_.bound(tensors), lag[begin:end], here[: map_.inputs])[1]
        scan = task.adjoint.scan
        return map_.structure.solve(a, b, init, scan, transposed=transposed)

    parts = task.parts(lag)
    x = torch.empty_like(b, memory_format=torch.contiguous_format)
    if transposed:
        x[-1] = b[-1]
        for begin, end in reversed(parts):
            x[begin:end] = solve(begin, end, b[begin:end], x[end])
        return x
    x[0] = b[0]
    for begin, end in parts:
        now = slice(begin + 1, end + 1)
        x[now] = solve(begin, end, b[now], x[begin])
    return x


def gradient(
    task: Any,
    v: Tensor,
    lag: Tensor,
    tensors: Sequence[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """The pull of `v` through the solution, if no derivative of it is taken.

    To the initial state, and to the tensors that are `needed`. One evaluation in each
    chunk does for the recurrence and for the pull that follows.
    """
    map_, inputs = task.map, task.map.inputs
    places = [i for i, x in enumerate(tensors) if needed[i] and is_inexact(x)]
    of_inputs = {
        i: torch.empty_like(tensors[i], memory_format=torch.contiguous_format)
        for i in places
        if i < inputs
    }
    of_params: dict[int, Tensor] = {}
    u = v[-1]
    for begin, end in reversed(task.parts(lag)):
        part = graph(
            map_,
            lag[begin:end],
            map_.during(tensors, begin, end),
            not task.iterates,
        )
        # `u_{t-1} = A_t^T u_t + v_{t-1}`, from the last: see `recurrence`.
        b = v[begin - 1 : end - 1] if begin else torch.cat([0 * v[:1], v[: end - 1]])
        if part.a is None:
            operator = LinearisedOperator.of(part.f, part.lag, True, map_.eps)
            before = task.iterated(operator, b, u)
        else:
            scan = task.adjoint.scan
            before = map_.structure.solve(part.a, b, u, scan, transposed=True)
        after = torch.cat([before[1:], u.unsqueeze(0)])
        u = before[0]
        found = grads(part.f, [part.tensors[i] for i in places], after, False)
        for i, g in zip(places, found, strict=True):
            if i < inputs:
                of_inputs[i][begin:end] = g
            else:
                of_params[i] = of_params[i] + g if i in of_params else g
    gradients = {**of_inputs, **of_params}
    return u, [gradients.get(i) for i in range(len(tensors))]


class Graph(NamedTuple):
    """`f` with its graph, the Jacobians without, and the variables of the graph."""

    f: Tensor
    a: Tensor | None
    lag: Tensor
    tensors: Sequence[Tensor]


def graph(
    map: AbstractChainMap, lag: Tensor, tensors: Sequence[Tensor], formed: bool = True
) -> Graph:
    """An evaluation, and the Jacobians if they are to be `formed`.

    That there are no other variables is checked.
    """
    a = None
    with torch.enable_grad():
        lag = alias(lag, False)
        here = [alias(x, False) if is_inexact(x) else x for x in tensors]
        if formed and map.has_formula:
            f, a = map.linearised(lag.detach(), here)
            a = a.detach()
        else:
            f = map(lag, here)
            a = map.structure.pulled(f, lag, False) if formed else None
    check_leaves(f, [lag, *here])
    return Graph(f, a, lag, here)
