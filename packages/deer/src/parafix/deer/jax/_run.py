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
) -> Any:
    """`(carry, ys)`, or `((carry, ys), solution)` where that is wanted."""
    sequential = isinstance(as_sweep(solver, job.rtol, job.atol), Sequential)
    if sequential or job.length * job.layout.size == 0:
        if not job.return_solution:
            return lax.scan(
                hashable(job.f), init, xs, job.length, job.reverse, job.unroll
            )
        rtol, atol = job.rtol, job.atol
        if isinstance(solver, Sequential):
            rtol, atol = solver.rtol, solver.atol
        return _run_sequentially(job, rtol, atol, init, xs)
    body = job.inspect(init, xs)
    if body.tainted:
        driver, source = body.tainted[0]
        dtype = job.layout.structs[job.layout.names.index(driver)].dtype
        raise TypeError(
            f"`{driver}` ({dtype}) depends on `{source}`, and only float leaves of the "
            'carry can be iterated on. Make it a float, or use solver="sequential".'
        )
    out, solution = _run_in_parallel(job, solver, body, init, xs, guess)
    return (out, solution) if job.return_solution else out


def _run_sequentially(job, rtol, atol, init, xs):
    def with_carry(carry, x):
        carry, y = job.f(carry, x)
        return carry, (y, carry)

    carry, (ys, carries) = lax.scan(
        with_carry, init, xs, job.length, job.reverse, job.unroll
    )
    z = job.states(carries)
    if job.inspect(init, xs).tainted:
        return (carry, ys), _unassessed(job, carries, z)
    problem, _, _ = as_chain(job, init, flip(xs) if job.reverse else xs)
    solution = assess(problem, z, rtol=rtol, atol=atol)
    return (carry, ys), eqx.tree_at(lambda s: s.value, solution, carries)


def _run_in_parallel(job, solver, body, init, xs, guess):
    layout = job.layout
    if job.reverse:
        xs = flip(xs)
    problem, drivers, new_drivers = as_chain(job, init, xs)
    solution = solve_chain(
        problem,
        solver=solver,
        rtol=job.rtol,
        atol=job.atol,
        guess=None if guess is None else job.states(guess),
        max_steps=job.max_steps,
        window=job.window,
        throw=job.throw,
    )
    z = solution.value
    carries = jax.vmap(layout.join)(z, new_drivers)
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
    if job.reverse:
        ys, carries = flip(ys), flip(carries)
    return (carry, ys), eqx.tree_at(lambda s: s.value, solution, carries)


def as_chain(job: Job, init: PyTree, xs: PyTree) -> tuple[Chain, Any, Any]:
    """The chain of the float leaves, and the drivers before and after each step."""
    layout = job.layout
    state, first = layout.split(init)

    def drive(drivers, x):
        # The floats do not matter: no driver depends on them.
        _, new = layout.split(job.f(layout.join(state, drivers), x)[0])
        return new, (drivers, new)

    def step(state, inputs):
        drivers, x = inputs
        carry, _ = job.f(layout.join(state, drivers), x)
        return layout.split(carry)[0]

    drivers = new_drivers = ()
    if first:
        _, (drivers, new_drivers) = lax.scan(drive, first, xs, length=job.length)
    structure = job.structure
    if isinstance(structure, Custom):
        # What the user supplies takes a carry.
        supplied = structure.function

        def function(state, inputs):
            drivers, x = inputs
            return supplied(layout.join(state, drivers), x)

        structure = Custom(function, structure.form)
    problem = Chain(
        Structured(step, structure),
        state,
        (drivers, xs),
        job.length,
        offset=job.length - 1 if job.reverse else 0,
        stride=-1 if job.reverse else 1,
        leaves=layout.leaves,
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
        },
        position=job.length - 1 - prefix if job.reverse else prefix,
    )


def sweeps_serve(job: Job, init: PyTree, xs: PyTree) -> bool:
    """Whether sweeps can take `f`: drivers run by themselves, and `f` has a JVP."""
    if job.inspect(init, xs).tainted:
        return False

    def serves(init, xs):
        problem, _, _ = as_chain(job, init, xs)
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
