"""Finishes a chain one step after the other, where sweeps have not solved it."""

import math
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from ._certificate import Certificate, certify
from ._chain import Chain, scan_chunks
from ._custom_types import BoolScalar, IntScalar, States
from ._segments import since_reset


class Finished(eqx.Module):
    """States of which those from `start` on are those of a loop.

    `dead` are the times since a state was not finite, up to the next reset.
    """

    z: States
    start: IntScalar
    certificate: Certificate
    dead: Bool[Array, " T"]


def finish(
    solver: Any,
    problem: Chain,
    z: States,
    start: IntScalar,
    needed: BoolScalar,
    options: dict[str, Any],
) -> Finished:
    """The chain from `start` on, one step after the other, if that is `needed`.

    Should a start within tolerance turn out not to be good enough, because the result
    amplifies rounding or is not within tolerance itself, it is computed from the
    beginning.
    """
    length = problem.length

    def body(carry):
        finished, _ = carry
        start = finished.start
        z = run_from(problem, finished.z, start)
        dead = since_reset(~jnp.isfinite(z).all(1), problem.resets)
        certificate = certify(
            problem,
            jnp.where(dead[:, None], 0, z),
            options["error"],
            solver.rtol,
            solver.atol,
            solver.scan,
            solver.chunk,
            dead,
        )
        good = (certificate.newton <= 1) & ~is_unstable(problem, certificate)
        again = ~good & (start > 0)
        start = jnp.where(again, 0, start)
        return Finished(z, start, certificate, dead), again

    # A loop that is not entered where nothing is needed, in a batch either.
    start = jnp.where(needed, start, length)
    none = jnp.zeros(length, bool)
    before = Finished(z, start, Certificate.start(problem, options["error"]), none)
    finished, _ = lax.while_loop(lambda carry: carry[1], body, (before, needed))
    return finished


def run_from(problem: Chain, z: States, start: IntScalar) -> States:
    """`z` before `start`, and from there on one step after the other."""

    def step(last, elements):
        z, x, index, reset = elements
        if reset is not None:
            last = jnp.where(reset, problem.start, last)
        z = jnp.where(index < start, z, problem.step(last, x))
        return z, z

    def body(last, elements):
        z, _, index, _ = elements
        # What lies before `start` altogether is passed by.
        return lax.cond(
            eqxi.unvmap_any(index[-1] >= start),
            lambda: lax.scan(step, last, elements),
            lambda: (z[-1], z),
        )

    index = jnp.arange(problem.length)
    elements = (z, problem.xs, index, problem.resets)
    chunk = math.isqrt(problem.length)
    return scan_chunks(body, problem.init, elements, problem.length, chunk)[1]


def is_unstable(problem: Chain, certificate: Certificate) -> BoolScalar:
    """Whether rounding may be all that is left of some states."""
    return ~(certificate.error.value <= float(problem.eps.max()) ** 0.5)
