"""One sweep over a chain."""

from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, PyTree

from ._certificate import Certificate, opened, Part, propagate, vouch
from ._chain import Chain, chunk_size, scan_chunks
from ._custom_types import BoolScalar, IntScalar, States
from ._measure import first, tolerance
from ._patience import Watch
from ._segments import earlier, since_reset


class SweepState(eqx.Module):
    # All about the iterate that entered the last sweep.
    prefix: IntScalar
    nonfinite: BoolScalar
    num_steps: IntScalar
    # How often Newton's method has looked at an iterate that it was about to return.
    num_looks: IntScalar
    # Of Newton's method, and once it has converged; otherwise of no meaning.
    certificate: Certificate
    # What the damping remembers.
    memory: PyTree
    # With resets: the times of a segment from its first true state that is not finite.
    dead: Bool[Array, " T"] | None = None
    # With patience: whether it is over.
    watch: Watch | None = None


def advance(
    solver: Any, problem: Chain, z: States, state: SweepState, options: dict[str, Any]
) -> tuple[States, SweepState]:
    """The iterate after the next sweep of `solver`, and what is known of `z`."""
    z, prefix, nonfinite, certificate, memory, dead = _sweep(
        solver, problem, z, options["error"], state.memory
    )
    looks = state.num_looks
    if solver.newton:
        # An update of the size of rounding leads nowhere.
        doubtful = (prefix == problem.length) & ~certificate.tiny
        prefix = _look(solver, problem, z, prefix, doubtful, dead)
        looks = looks + jnp.where(doubtful, 1, 0)
    steps = state.num_steps + 1
    return z, SweepState(
        prefix, nonfinite, steps, looks, certificate, memory, dead, state.watch
    )


def _look(solver, problem, z, prefix, doubtful, dead):
    """`prefix` after a look at the iterate that is returned, where it is `doubtful`.

    What a sweep has seen is the iterate before it. The two are within tolerance of each
    other, and yet a jump of `step`, where it takes a decision, may lie between them.
    """
    length = problem.length

    def body(sofar, elements):
        lag, z, xs, index, dead = elements
        r = jax.vmap(problem.step)(lag, xs) - z
        part = Part(z, r, tolerance(solver.rtol, solver.atol, z), index).without(dead)
        beyond = first(~(jnp.abs(part.r) <= part.tol), index, length)
        return jnp.minimum(sofar, beyond), None

    def beyond():
        return scan_chunks(
            body,
            jnp.array(length),
            (problem.lag(z), z, problem.xs, jnp.arange(length), dead),
            length,
            chunk_size(solver.chunk, length, problem.num_entries),
        )[0]

    looked = lax.cond(eqxi.unvmap_any(doubtful), beyond, lambda: jnp.array(length))
    # Of the iterate before, one state less is within tolerance.
    before = jnp.where(looked < length, jnp.maximum(looked - 1, 0), length)
    return jnp.where(doubtful, before, prefix)


def _sweep(solver, problem, z, error, memory):
    """One sweep: the next iterate, and what is known of the entering one."""
    length = problem.length
    index = jnp.arange(length)
    transitions = jax.vmap(lambda z, x: solver.transition(problem.step, z, x))
    damping = solver.damping

    def body(carry, elements):
        last, broken, prefix, bad, certificate, held, total, segment = carry
        lag, z, xs, index, resets = elements
        f, a = transitions(lag, xs)
        # A product that ends `f` may be fused with the subtraction and not be rounded:
        # then `f - z` is not zero where `z` is what `f` was before.
        r = jnp.where(f == z, 0, f - z)
        if damping is not None:
            a, held = damping.damp(opened(a, index, resets), index, memory, held)
        if a is None:
            d = r
        else:
            d = propagate(problem, solver.scan, a, r, last, index, resets)
        new = f + (d - r)

        if resets is None:
            broken = jnp.minimum(broken, _first_broken(new, d, a, index, length))
            beyond = index >= broken
        else:
            beyond = since_reset(~jnp.isfinite(new).all(1), resets, segment.broken)
        # (A sum of finite numbers may overflow by itself.)
        quarantine = beyond[:, None] | ~jnp.isfinite(new)
        new = jnp.where(quarantine, jnp.where(jnp.isfinite(f), f, z), new)
        d = jnp.where(quarantine, new - z, d)
        tol = tolerance(solver.rtol, solver.atol, z)
        within = (jnp.abs(r) <= tol) & (jnp.abs(d) <= tol)
        if resets is None:
            dead = None
            end = first(~within, index, length)
            there = f[jnp.minimum(end - index[0], f.shape[0] - 1)]
            bad = jnp.where(end < prefix, ~jnp.isfinite(there).all(), bad)
        else:
            out, segment = segment.after(f, within, resets, beyond)
            dead = out.dead
            end = first(out.unsettled[:, None], index, length)
        prefix = jnp.minimum(prefix, end)
        part = Part(z, r, tol, index, resets).without(dead)
        if damping is not None:
            total = total + jnp.abs(part.r).sum()
        if solver.newton:
            certificate = vouch(
                problem,
                solver.scan,
                certificate,
                part,
                d if dead is None else jnp.where(dead[:, None], 0, d),
                lambda: transitions(lag, xs)[1],
                prefix == length,
                solver.rtol,
            )
        carry = (d[-1], broken, prefix, bad, certificate, held, total, segment)
        return carry, (new, dead)

    none, end = jnp.zeros_like(problem.init), jnp.array(length)
    held = None
    if damping is not None:
        first_x = jax.tree.map(lambda x: x[0], problem.xs)
        _, a = jax.eval_shape(
            lambda z, x: solver.transition(problem.step, z, x), problem.init, first_x
        )
        held = damping.start(a)
    certificate = Certificate.start(problem, error)
    total = jnp.zeros((), z.dtype)
    segment = None if problem.resets is None else _Segment.start()
    carry = (none, end, end, jnp.array(False), certificate, held, total, segment)
    (_, _, prefix, nonfinite, certificate, _, total, _), (new, dead) = scan_chunks(
        body,
        carry,
        (problem.lag(z), z, problem.xs, index, problem.resets),
        length,
        chunk_size(solver.chunk, length, problem.num_entries),
    )
    if damping is not None:
        memory = damping.update(memory, total)
    return new, prefix, nonfinite, certificate, memory, dead


def _first_broken(new, d, a, index, length):
    """The first of the times `index` at which `new` is not finite."""
    if a is None:
        return first(~jnp.isfinite(new), index, length)
    # What is not finite stays so until the end of a scan, and shows there.
    return lax.cond(
        eqxi.unvmap_any(~jnp.isfinite(d[-1]).all()),
        lambda: first(~jnp.isfinite(new), index, length),
        lambda: jnp.array(length),
    )


class _Judged(eqx.Module):
    """What the times of a chunk are found to be."""

    dead: Bool[Array, " T"]
    unsettled: Bool[Array, " T"]


class _Segment(eqx.Module):
    """What has happened since the last reset, carried from chunk to chunk."""

    broken: BoolScalar
    # Something was not within tolerance; a true state is not finite.
    out: BoolScalar
    dead: BoolScalar

    @classmethod
    def start(cls) -> "_Segment":
        no = jnp.array(False)
        return cls(no, no, no)

    def after(self, f, within, resets, beyond):
        """What is known of the times of the next chunk, and the segment after it.

        A time is settled if it is within tolerance, or dead: a true state of its
        segment is not finite. That is so where a segment is first out of tolerance and
        `f` is not finite; for `f` is the next state of one that is right.
        """
        out = ~within.all(1)
        seen = since_reset(out, resets, self.out)
        first_out = out & (resets | ~earlier(seen, self.out))
        dying = first_out & ~jnp.isfinite(f).all(1)
        dead = since_reset(dying, resets, self.dead)
        segment = _Segment(beyond[-1], seen[-1], dead[-1])
        return _Judged(dead, out & ~dead), segment
