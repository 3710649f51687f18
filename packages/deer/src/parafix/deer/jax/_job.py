"""What a scan is, as a chain."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax import lax
from jaxtyping import PyTree

from parafix.core.jax import AbstractStructure, Chain, Custom, Structured

from ._carry import Body, inspect, Layout
from ._segments import Segments, select


class Job(eqx.Module):
    """Everything about a scan but its arrays."""

    f: Callable
    layout: Layout
    rtol: Any
    atol: Any
    length: int = eqx.field(static=True)
    reverse: bool = eqx.field(static=True)
    unroll: int | bool = eqx.field(static=True)
    max_steps: int | None = eqx.field(static=True)
    window: int | None = eqx.field(static=True)
    throw: bool = eqx.field(static=True)
    return_solution: bool = eqx.field(static=True)
    structure: AbstractStructure
    fallback: str | None = eqx.field(static=True, default=None)
    # By which name the guess is found, where none is given.
    ladder: str = eqx.field(static=True, default="init")
    # Of a loop `None`: its own derivatives.
    adjoint: str | optx.AbstractAdjoint | None = None
    patience: int | None = eqx.field(static=True, default=None)

    def inspect(self, init: PyTree, xs: PyTree) -> Body:
        x = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
        return inspect(hashable(self.f), self.layout, init, x)

    def states(self, carries: PyTree) -> Any:
        """The states `(T, n)` of carries in the order of `ys`, in the order of time."""
        if not self.layout.floats:
            return jnp.zeros((self.length, 0), self.layout.dtype)
        carries = flip(carries) if self.reverse else carries
        return jax.vmap(lambda carry: self.layout.split(carry)[0])(carries)


def first_step(problem: Chain) -> Any:
    """What a step from the initial state leads to, at every time."""
    z = jnp.broadcast_to(problem.init, (problem.length, problem.size))
    return lax.stop_gradient(problem(z))


def as_chain(
    job: Job,
    init: PyTree,
    xs: PyTree,
    segments: Segments,
    drivers: tuple[Any, Any] | None = None,
) -> tuple[Chain, tuple[Any, Any]]:
    """The chain of the float leaves, and the drivers before and after each step.

    The drivers are run, unless they are given.
    """
    layout = job.layout
    origin, first = layout.split(init)

    def drive(drivers, inputs):
        x, reset, valid = inputs
        before = drivers if reset is None else select(reset, first, drivers)
        # The floats do not matter: no driver depends on them.
        _, new = layout.split(job.f(layout.join(origin, before), x)[0])
        new = new if valid is None else select(valid, new, drivers)
        return new, (before, new)

    def step(state, inputs):
        drivers, x, valid = inputs
        carry, _ = job.f(layout.join(state, drivers), x)
        new = layout.split(carry)[0]
        return new if valid is None else jnp.where(valid, new, origin)

    if drivers is None:
        drivers = ((), ())
        if first:
            inputs = (xs, segments.resets, segments.valid)
            _, drivers = lax.scan(drive, first, inputs, length=job.length)
    structure = job.structure
    if isinstance(structure, Custom):
        # What the user supplies takes a carry.
        supplied = structure.function

        def function(state, inputs):
            drivers, x, valid = inputs
            a = supplied(layout.join(state, drivers), x)
            # A step that does not belong leads to a constant.
            return a if valid is None else jnp.where(valid, a, 0)

        structure = Custom(function, structure.form)
    problem = Chain(
        Structured(step, structure),
        origin,
        (drivers[0], xs, segments.valid),
        job.length,
        offset=job.length - 1 if job.reverse else 0,
        stride=-1 if job.reverse else 1,
        leaves=layout.leaves,
        resets=segments.starts,
    )
    return problem, drivers


def states_at(job: Job, init: PyTree, carries: PyTree, segments: Segments) -> Any:
    """The states `(T, n)` of the chain, from the carries that a loop returned."""
    z = job.states(carries)
    if segments.valid is None:
        return z
    # Where a step does not belong, the chain starts over.
    return jnp.where(segments.valid[:, None], z, job.layout.split(init)[0])


def drivers_at(job: Job, init: PyTree, carries: PyTree) -> tuple[Any, Any]:
    """The drivers before and after each step, from the carries of a loop."""
    carries = flip(carries) if job.reverse else carries
    _, after = jax.vmap(job.layout.split)(carries)
    _, first = job.layout.split(init)

    def delayed(first, x):
        return jnp.concatenate([first[None], x[:-1]])

    return tuple(map(delayed, first, after)), after


def outputs_at(
    job: Job,
    body: Body,
    problem: Chain,
    z: Any,
    drivers: tuple[Any, Any],
    xs: PyTree,
    segments: Segments,
) -> tuple[tuple[PyTree, PyTree], PyTree]:
    """`((carry, ys), carries)` at the states `z`; `xs` in the order of time.

    `ys` and `carries` are in the order that the user sees.
    """
    layout = job.layout
    before, after = drivers
    carries = jax.vmap(layout.join)(segments.held(z, problem.init), after)
    carry = jax.tree.map(lambda x: x[-1], carries)
    if None in body.aliases:
        # The output of the step that led from one carry to the next.
        def output(inputs):
            state, drivers, x = inputs
            return job.f(layout.join(state, drivers), x)[1]

        inputs = (problem.lag(z), before, xs)
        if job.window is None:
            ys = jax.vmap(output)(inputs)
        else:
            ys = lax.map(jax.checkpoint(output), inputs, batch_size=job.window)
    else:
        leaves = jax.tree.leaves(carries)
        found = [leaves[i] for i in body.aliases if i is not None]
        ys = jax.tree.unflatten(body.y_treedef, found)
    ys = segments.cleared(ys)
    if job.reverse:
        ys, carries = flip(ys), flip(carries)
    return (carry, ys), carries


def sweeps_serve(job: Job, init: PyTree, xs: PyTree) -> bool:
    """Whether sweeps can take `f`: drivers run by themselves, and `f` has a JVP."""
    if job.inspect(init, xs).tainted:
        return False

    def serves(init, xs):
        problem, _ = as_chain(job, init, xs, Segments())
        return jnp.zeros(int(problem.has_tangent))

    return jax.eval_shape(serves, init, xs).shape == (1,)


def hashable(f: Callable) -> Callable:
    """`f`, or a function that calls it: JAX's loop takes no module that has arrays."""
    try:
        hash(f)
    except TypeError:
        return lambda carry, x: f(carry, x)
    return f


def flip(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.flip(x, 0), tree)
