"""What a solve of a chain tells of its states: a code, a prefix, an entry."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ._certificate import Certificate, where, worst_entry
from ._chain import Chain
from ._custom_types import BoolScalar, IntScalar, States
from ._finish import finish, is_unstable
from ._result import RESULTS
from ._update import SweepState


class Report(eqx.Module):
    """How far `z` is right, and in which entry of the state it is not.

    From `end` on, and at the times `dead`, there is no number. From `start` on the
    states are those of a loop.
    """

    result: RESULTS
    prefix: IntScalar
    entry: IntScalar
    end: IntScalar
    dead: Bool[Array, " T"] | None
    start: IntScalar


def has_converged(state: SweepState, length: int) -> BoolScalar:
    # After `length` sweeps every state is exact, whether or not that was confirmed.
    return (state.prefix == length) | (state.num_steps >= length)


def report_sweeps(
    problem: Chain, z: States, state: SweepState, certificate: Certificate
) -> Report:
    """Of states that sweeps have found."""
    length = problem.length
    result = RESULTS.where(certificate.newton <= 1, RESULTS.successful, RESULTS.stalled)
    unstable = is_unstable(problem, certificate)
    result = RESULTS.where(unstable, RESULTS.ill_conditioned, result)
    converged = has_converged(state, length)
    result = RESULTS.where(converged, result, RESULTS.max_steps_reached)
    # The prefix is about the iterate that entered the last sweep. The one that is
    # returned has one more state within tolerance, and at least `num_steps` exact.
    prefix = jnp.maximum(state.prefix + 1, state.num_steps)
    prefix = jnp.where(state.nonfinite, state.prefix, jnp.minimum(prefix, length))
    nonfinite = state.nonfinite
    if state.dead is not None:
        # A segment may still be wrong before one that is dead: then it comes first.
        first_dead = _first(state.dead)
        nonfinite = first_dead < prefix
        prefix = jnp.minimum(prefix, first_dead)
    result = RESULTS.where(nonfinite, RESULTS.nonfinite, result)
    unstable = result == RESULTS.ill_conditioned
    prefix = jnp.where(unstable, certificate.prefix, prefix)
    # Residuals within tolerance add up where a chain forgets slowly: how far states are
    # right is what the Newton step says.
    near = jnp.maximum(jnp.minimum(certificate.near, prefix), state.num_steps)
    short = (result == RESULTS.stalled) | (result == RESULTS.max_steps_reached)
    prefix = jnp.where(short, near, prefix)
    entry = jnp.where(unstable, certificate.entry, worst_entry(problem, z, prefix))
    end = jnp.where(state.nonfinite, prefix, length)
    return Report(result, prefix, entry, end, state.dead, jnp.array(length))


def report_finished(
    solver: Any,
    problem: Chain,
    z: States,
    state: SweepState,
    certificate: Certificate,
    options: dict[str, Any],
) -> tuple[States, Certificate, Report]:
    """Of states that sweeps have found as far as they could, and a loop from there.

    Where sweeps have solved the chain, or found that it is not finite, no loop is run.
    What a loop has computed from the beginning is a success as that of a loop is, even
    if it amplifies rounding.
    """
    report = report_sweeps(problem, z, state, certificate)
    unstable = is_unstable(problem, certificate)
    solved = has_converged(state, problem.length) & (certificate.newton <= 1)
    enough = (solved & ~unstable) | state.nonfinite
    start = jnp.where(unstable, 0, report.prefix)
    done = finish(solver, problem, z, start, ~enough, options)
    z, certificate = where(enough, (z, certificate), (done.z, done.certificate))

    prefix = _first(done.dead)
    exact = options["exact"] & (done.start == 0)
    unstable = is_unstable(problem, certificate) & ~exact
    result = RESULTS.where(unstable, RESULTS.ill_conditioned, RESULTS.successful)
    nonfinite = done.dead.any()
    result = RESULTS.where(nonfinite, RESULTS.nonfinite, result)
    unstable = unstable & ~nonfinite
    prefix = jnp.where(unstable, certificate.prefix, prefix)
    entry = jnp.where(unstable, certificate.entry, worst_entry(problem, z, prefix))
    dead = jnp.zeros_like(done.dead) if report.dead is None else report.dead
    finished = (prefix, entry, jnp.array(problem.length), done.dead, done.start)
    swept = (report.prefix, report.entry, report.end, dead, report.start)
    result = RESULTS.where(enough, report.result, result)
    return z, certificate, Report(result, *where(enough, swept, finished))


def _first(flags):
    """The first time at which `flags` is true; their number if there is none."""
    return jnp.where(flags.any(), jnp.argmax(flags), flags.shape[0])
