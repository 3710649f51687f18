"""One sweep over a chain."""

from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from ._certificate import Certificate, opened, Part, propagate, vouch
from ._chain import Chain, chunk_size, scan_chunks
from ._custom_types import BoolScalar, IntScalar, States
from ._measure import first, tolerance


class SweepState(eqx.Module):
    # All about the iterate that entered the last sweep.
    prefix: IntScalar
    nonfinite: BoolScalar
    num_steps: IntScalar
    # Of Newton's method, and once it has converged; otherwise of no meaning.
    certificate: Certificate
    # What the damping remembers.
    memory: PyTree


def advance(
    solver: Any, problem: Chain, z: States, state: SweepState, options: dict[str, Any]
) -> tuple[States, SweepState]:
    """The iterate after the next sweep of `solver`, and what is known of `z`."""
    z, prefix, nonfinite, certificate, memory = _sweep(
        solver, problem, z, options["error"], state.memory
    )
    return z, SweepState(prefix, nonfinite, state.num_steps + 1, certificate, memory)


def _sweep(solver, problem, z, error, memory):
    """One sweep: the next iterate, and what is known of the entering one."""
    length = problem.length
    index = jnp.arange(length)
    transitions = jax.vmap(lambda z, x: solver.transition(problem.step, z, x))
    damping = solver.damping

    def body(carry, elements):
        last, broken, prefix, bad, certificate, held, total = carry
        lag, z, xs, index = elements
        f, a = transitions(lag, xs)
        # A product that ends `f` may be fused with the subtraction and not be rounded:
        # then `f - z` is not zero where `z` is what `f` was before.
        r = jnp.where(f == z, 0, f - z)
        if damping is not None:
            a, held = damping.damp(opened(a, index), index, memory, held)
            total = total + jnp.abs(r).sum()
        d = r if a is None else propagate(problem, solver.scan, a, r, last, index)
        new = f + (d - r)

        broken = jnp.minimum(broken, _first_broken(new, d, a, index, length))
        # (A sum of finite numbers may overflow by itself.)
        quarantine = (index >= broken)[:, None] | ~jnp.isfinite(new)
        new = jnp.where(quarantine, jnp.where(jnp.isfinite(f), f, z), new)
        d = jnp.where(quarantine, new - z, d)
        tol = tolerance(solver.rtol, solver.atol, z)
        within = (jnp.abs(r) <= tol) & (jnp.abs(d) <= tol)
        end = first(~within, index, length)
        there = f[jnp.minimum(end - index[0], f.shape[0] - 1)]
        bad = jnp.where(end < prefix, ~jnp.isfinite(there).all(), bad)
        prefix = jnp.minimum(prefix, end)
        if solver.newton:
            certificate = vouch(
                problem,
                solver.scan,
                certificate,
                Part(z, r, tol, index),
                d,
                lambda: transitions(lag, xs)[1],
                prefix == length,
            )
        return (d[-1], broken, prefix, bad, certificate, held, total), new

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
    carry = (none, end, end, jnp.array(False), certificate, held, total)
    (_, _, prefix, nonfinite, certificate, _, total), new = scan_chunks(
        body,
        carry,
        (problem.lag(z), z, problem.xs, index),
        length,
        chunk_size(solver.chunk, length, problem.num_entries),
    )
    if damping is not None:
        memory = damping.update(memory, total)
    return new, prefix, nonfinite, certificate, memory


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
