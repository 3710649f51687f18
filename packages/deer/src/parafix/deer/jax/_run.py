"""Runs a scan, in one of two ways, and says how it went."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from parafix.core.jax import (
    AbstractStructure,
    AbstractSweep,
    as_sweep,
    assess,
    Chain,
    Custom,
    RESULTS,
    Sequential,
    Solution,
    solve_chain,
    Structured,
)

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

    def inspect(self, init: PyTree, xs: PyTree) -> Body:
        x = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
        return inspect(hashable(self.f), self.layout, init, x)

    def states(self, carries: PyTree) -> Any:
        """The states `(T, n)` of carries in the order of `ys`, in the order of time."""
        if not self.layout.floats:
            return jnp.zeros((self.length, 0), self.layout.dtype)
        carries = flip(carries) if self.reverse else carries
        return jax.vmap(lambda carry: self.layout.split(carry)[0])(carries)


@eqx.filter_jit
def run(
    job: Job,
    solver: str | AbstractSweep | Sequential,
    init: PyTree,
    xs: PyTree,
    guess: PyTree,
    segments: Segments,
) -> Any:
    """`(carry, ys)`, or `((carry, ys), solution)` where that is wanted."""
    xs = segments.filled(xs)
    sequential = isinstance(as_sweep(solver, job.rtol, job.atol), Sequential)
    if sequential or job.length * job.layout.size == 0:
        if not job.return_solution:
            return _loop(job, hashable(job.f), init, xs, segments)
        rtol, atol = job.rtol, job.atol
        if isinstance(solver, Sequential):
            rtol, atol = solver.rtol, solver.atol
        return _run_sequentially(job, rtol, atol, init, xs, segments)
    body = job.inspect(init, xs)
    body.check_drivers(job.layout)
    out, solution = _run_in_parallel(job, solver, body, init, xs, guess, segments)
    return (out, solution) if job.return_solution else out


def _loop(job, f, init, xs, segments):
    if not segments.trivial:
        f, xs = segments.looped(f, init), (xs, segments.resets, segments.valid)
    return lax.scan(f, init, xs, job.length, job.reverse, job.unroll)


def _run_sequentially(job, rtol, atol, init, xs, segments):
    def with_carry(carry, x):
        carry, y = job.f(carry, x)
        return carry, (y, carry)

    carry, (ys, carries) = _loop(job, with_carry, init, xs, segments)
    if segments.valid is not None:
        # That of a step that does not belong was set to zero, as an output.
        carries = _held(job, carries, carry, init, segments)
    z = job.states(carries)
    if job.inspect(init, xs).tainted:
        return (carry, ys), _unassessed(job, carries, z)
    if job.reverse:
        xs, segments = flip((xs, segments))
    problem, _, _ = as_chain(job, init, xs, segments)
    if segments.valid is not None:
        z = jnp.where(segments.valid[:, None], z, problem.start)
    solution = assess(problem, z, rtol=rtol, atol=atol)
    return (carry, ys), eqx.tree_at(lambda s: s.value, solution, carries)


def _held(job, carries, last, init, segments):
    """`carries` unchanged where a step does not belong to the sample."""
    unchanged = init if job.reverse else last
    return jax.vmap(select, (0, 0, None))(segments.valid, carries, unchanged)


def _run_in_parallel(job, solver, body, init, xs, guess, segments):
    layout = job.layout
    if job.reverse:
        xs, segments = flip((xs, segments))
    problem, drivers, new_drivers = as_chain(job, init, xs, segments)
    if guess is not None:
        guess = job.states(guess)
    elif job.ladder == "step":
        guess = first_step(problem)
    solution = solve_chain(
        problem,
        solver=solver,
        rtol=job.rtol,
        atol=job.atol,
        guess=guess,
        max_steps=job.max_steps,
        window=job.window,
        throw=job.throw,
        fallback=job.fallback,
    )
    z = solution.value
    carries = jax.vmap(layout.join)(segments.held(z, problem.init), new_drivers)
    carry = jax.tree.map(lambda x: x[-1], carries)
    if None in body.aliases:
        # The output of the step that led from one carry to the next.
        def output(inputs):
            state, drivers, x = inputs
            return job.f(layout.join(state, drivers), x)[1]

        inputs = (problem.lag(z), drivers, xs)
        if job.window is None:
            ys = jax.vmap(output)(inputs)
        else:
            ys = lax.map(jax.checkpoint(output), inputs, batch_size=job.window)
    else:
        leaves = jax.tree.leaves(carries)
        ys = jax.tree.unflatten(body.y_treedef, [leaves[i] for i in body.aliases])
    ys = segments.cleared(ys)
    if job.reverse:
        ys, carries = flip(ys), flip(carries)
    return (carry, ys), eqx.tree_at(lambda s: s.value, solution, carries)


def first_step(problem: Chain) -> Any:
    """What a step from the initial state leads to, at every time."""
    z = jnp.broadcast_to(problem.init, (problem.length, problem.size))
    return lax.stop_gradient(problem(z))


def as_chain(
    job: Job, init: PyTree, xs: PyTree, segments: Segments
) -> tuple[Chain, Any, Any]:
    """The chain of the float leaves, and the drivers before and after each step."""
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

    drivers = new_drivers = ()
    if first:
        inputs = (xs, segments.resets, segments.valid)
        _, (drivers, new_drivers) = lax.scan(drive, first, inputs, length=job.length)
    structure = job.structure
    if isinstance(structure, Custom):
        # What the user supplies takes a carry.
        supplied = structure.function

        def function(state, inputs):
            drivers, x, _ = inputs
            return supplied(layout.join(state, drivers), x)

        structure = Custom(function, structure.form)
    problem = Chain(
        Structured(step, structure),
        origin,
        (drivers, xs, segments.valid),
        job.length,
        offset=job.length - 1 if job.reverse else 0,
        stride=-1 if job.reverse else 1,
        leaves=layout.leaves,
        resets=segments.starts,
    )
    return problem, drivers, new_drivers


def _unassessed(job, carries, z):
    """About a sequential solve that is no chain: only whether it is finite."""
    bad = ~jnp.isfinite(lax.stop_gradient(z)).all(-1)
    prefix = jnp.where(bad.any(), jnp.argmax(bad), job.length)
    unknown = jnp.full((), jnp.nan, job.layout.dtype)
    none = jnp.array(0)
    return Solution(
        value=carries,
        result=RESULTS.where(bad.any(), RESULTS.nonfinite, RESULTS.successful),
        stats={
            "num_steps": jnp.array(job.length),
            "num_evals": none,
            "num_linear": none,
            "residual": unknown,
            "converged_prefix": prefix,
            "error_estimate": unknown,
            "lyapunov_exponent": unknown,
            "sequential_from": none,
        },
        position=job.length - 1 - prefix if job.reverse else prefix,
    )


def sweeps_serve(job: Job, init: PyTree, xs: PyTree) -> bool:
    """Whether sweeps can take `f`: drivers run by themselves, and `f` has a JVP."""
    if job.inspect(init, xs).tainted:
        return False

    def serves(init, xs):
        problem, _, _ = as_chain(job, init, xs, Segments())
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
