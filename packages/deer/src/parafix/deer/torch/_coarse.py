"""A guess of the states of an initial value problem."""

from typing import Any

import torch
from torch import Tensor

from parafix.core.torch import over_time

from ._steps import mapped, Steps


# One step of the loop stands for so many.
_STRIDE = 10


def coarse(steps: Steps, t: Tensor, xs: tuple[Tensor, Tensor]) -> Any:
    """States at all times but the first: a loop over every tenth, and lines between.

    A step ten times as long may be unstable where a short one is not. So of each sample
    whose equations these states fulfil less well than the initial state at all times,
    that is taken.
    """
    with torch.no_grad():
        layout = steps.layout
        init, t = mapped(Tensor.detach, (steps.init, t))
        xs = mapped(Tensor.detach, xs)
        state = layout.split(init)[0]
        lines = _lines(steps, t.to(layout.device), init)
        flat = state.expand(lines.shape)
        nearer = _distance(steps, state, lines, xs) <= _distance(steps, state, flat, xs)
        # Comparisons with NaN are false.
        return layout.join(torch.where(nearer[:, None], lines, flat), ())


def _lines(steps, t, carry):
    """The flat states `(T, B, n)` of the loop, and those between."""
    layout, last = steps.layout, len(t) - 1
    nodes = [*range(0, last, _STRIDE), last]
    at_nodes = t[nodes]
    lengths = at_nodes.diff().to(layout.dtype)
    states = [layout.split(carry)[0]]
    for x in zip(at_nodes[:-1].to(layout.dtype), lengths, strict=True):
        carry, _ = steps(carry, x)
        states.append(layout.split(carry)[0])
    states = torch.stack(states)
    before = torch.arange(last, device=t.device) // _STRIDE
    weight = (t[1:] - at_nodes[before]) / (at_nodes[before + 1] - at_nodes[before])
    weight = weight.to(layout.dtype)[:, None, None]
    return torch.lerp(states[before], states[before + 1], weight)


def _distance(steps, init, states, xs):
    """How far states `(T, B, n)` are from being those of the steps, `(B,)`."""
    lag = torch.cat([init[None], states[:-1]])
    join = steps.layout.join
    new = over_time(lambda state, x: steps.state(join(state, ()), x), lag, xs)
    return (new - states).abs().sum((0, 2))
