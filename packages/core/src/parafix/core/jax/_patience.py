"""Whether further sweeps will pay."""

from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
from jax import lax

from ._chain import Chain
from ._custom_types import BoolScalar, IntScalar, States
from ._growth import lyapunov_exponent


# From this look on it does not matter what the exponent says.
LAST_LOOK = 4


class Watch(eqx.Module):
    """The prefix when the sweeps were last looked at, and whether to give them up."""

    prefix: IntScalar
    hopeless: BoolScalar

    @classmethod
    def start(cls) -> "Watch":
        return cls(jnp.array(0), jnp.array(False))


def watched(
    solver: Any,
    problem: Chain,
    z: States,
    watch: Watch,
    prefix: IntScalar,
    num_steps: IntScalar,
    patience: int,
) -> Watch:
    """What is thought of the sweeps of an unfinished solve after `num_steps` of them.

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
    times = num_steps // patience
    turn = (num_steps == times * patience) & (times > 0) & (times & (times - 1) == 0)
    slow = problem.length - prefix > 2 * (prefix - watch.prefix)
    asked = turn & slow
    growth = lax.cond(
        eqxi.unvmap_any(asked & (times < LAST_LOOK)),
        lambda: (
            lyapunov_exponent(problem, z, prefix, solver.chunk) * prefix.astype(z.dtype)
        ),
        lambda: jnp.full((), jnp.nan, z.dtype),
    )
    # True for NaN.
    grows = ~(growth <= -1) | (times >= LAST_LOOK)
    return Watch(
        jnp.where(turn, prefix, watch.prefix), watch.hopeless | (asked & grows)
    )
