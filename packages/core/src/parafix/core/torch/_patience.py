"""Whether further sweeps will pay."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ._chain import Chain
from ._growth import lyapunov_exponent


# From this look on it does not matter what the exponent says.
LAST_LOOK = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Watch:
    """The prefix when the sweeps were last looked at, and whether to give them up."""

    prefix: Tensor
    hopeless: Tensor

    @classmethod
    def start(cls, prefix: Tensor) -> "Watch":
        return cls(prefix, torch.zeros_like(prefix, dtype=torch.bool))


def watched(
    solver: Any,
    problem: Chain,
    z: Tensor,
    watch: Watch,
    prefix: Tensor,
    active: Tensor,
    num_steps: int,
    patience: int,
) -> Watch:
    """What is thought of the sweeps of the `active` samples after `num_steps` of them.

    They are looked at after `patience` sweeps, twice as many, four times as many, ...
    Where errors shrink along the chain, an iterate near the solution converges at all
    times at once; where they do not, the prefix has to grow to the end, at the pace
    that is seen. So they are given up if

    - at the pace since the last look, more than twice the sweeps since then are
      missing,
    - and errors do not shrink along the prefix: its largest Lyapunov exponent, times
      its length, is above -1. From four times the patience on the pace alone decides:
      iterates that have run away stay far from the solution, whatever the chain does.

    The exponent is that of the prefix. Beyond it Jacobians are those of an iterate, and
    say nothing of the chain.
    """
    times, rest = divmod(num_steps, patience)
    if rest or times == 0 or times & (times - 1):
        return watch
    slow = problem.length - prefix > 2 * (prefix - watch.prefix)
    asked = active & slow
    if times < LAST_LOOK and bool(asked.any()):
        growth = lyapunov_exponent(problem, z, prefix, solver.chunk) * prefix
        # True for NaN.
        asked = asked & ~(growth <= -1)
    return Watch(prefix, watch.hopeless | asked)
