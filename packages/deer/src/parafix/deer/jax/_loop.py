"""JAX's own loop, and the derivatives that a chain has at its states."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax import lax
from jaxtyping import PyTree

from parafix.core.jax import attach, Custom

from ._job import (
    as_chain,
    drivers_at,
    flip,
    hashable,
    Job,
    outputs_at,
    states_at,
    sweeps_serve,
)
from ._segments import Segments, select


def loop(job: Job, init: PyTree, xs: PyTree, segments: Segments, ask: bool) -> Any:
    """`((carry, ys), carries)` by `lax.scan`; `carries` is `None` unless `ask`.

    With `job.adjoint` its derivatives are those of the chain, where `f` allows for it;
    they are the same to rounding. What is not differentiated is the plain loop.
    """
    if job.adjoint is None or not _is_chain(job, init, xs):
        return _plain(job, init, xs, segments, ask)
    x = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    f = eqx.filter_closure_convert(hashable(job.f), init, x)
    structure = job.structure
    if isinstance(structure, Custom):
        function = eqx.filter_closure_convert(structure.function, init, x)
        structure = Custom(function, structure.form)
    job = dataclasses.replace(job, f=f, structure=structure)
    return _attached(job, init, xs, segments, ask)


def _is_chain(job, init, xs):
    """Whether the carries are a chain whose states say all about the other carries."""
    if job.length * job.layout.size == 0:
        return False
    # JAX tells what is of no dtype of its own from what is.
    if any(jax.typeof(x).weak_type for x in jax.tree.leaves(init)):
        return False
    body = job.inspect(init, xs)
    # What has effects is to happen once at each time, and samples that a collective
    # operation couples are no chains.
    return not (body.tainted or body.effects)


def _plain(job, init, xs, segments, ask):
    f: Callable = hashable(job.f)
    if ask:
        f = _with_carry(f)
    if not segments.trivial:
        f, xs = segments.looped(f, init), (xs, segments.resets, segments.valid)
    carry, ys = lax.scan(f, init, xs, job.length, job.reverse, job.unroll)
    if not ask:
        return (carry, ys), None
    ys, carries = ys
    if segments.valid is not None:
        # That of a step that does not belong was set to zero, as an output.
        unchanged = init if job.reverse else carry
        carries = jax.vmap(select, (0, 0, None))(segments.valid, carries, unchanged)
    return (carry, ys), carries


def _with_carry(f):
    def body(carry, x):
        carry, y = f(carry, x)
        return carry, (y, carry)

    return body


# The derivative of the whole loop, and not of a step in it: what a loop keeps of every
# step, and the loop that goes back, are what its gradient costs.
@eqx.filter_custom_jvp
def _attached(job, init, xs, segments, ask):
    return _plain(job, init, xs, segments, ask)


@_attached.def_jvp
def _attached_jvp(primals, tangents):
    *point, segments, ask = primals
    *tangents, _, _ = tangents
    # By itself, so that its own derivatives are there.
    out, carries = _attached(*point, segments, True)

    def at_states(job, init, xs):
        where = segments
        if job.reverse:
            xs, where = flip((xs, where))
        drivers = drivers_at(job, init, carries) if segments.trivial else None
        problem, drivers = as_chain(job, init, xs, where, drivers)
        z = states_at(job, init, carries, where)
        z = attach(problem, z, adjoint=job.adjoint)
        body = job.inspect(init, xs)
        return outputs_at(job, body, problem, z, drivers, xs, where)

    def of_steps(job, init, xs):
        return _plain(job, init, xs, segments, True)

    # A step may have a gradient and no tangent.
    function = at_states if sweeps_serve(*point) else of_steps
    _, (t_out, t_carries) = eqx.filter_jvp(function, tuple(point), tuple(tangents))
    if ask:
        return (out, carries), (t_out, t_carries)
    return (out, None), (t_out, None)
