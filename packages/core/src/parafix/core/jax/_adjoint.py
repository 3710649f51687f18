import functools as ft
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import PyTree

from ._affine_scan import affine_scan
from ._chain import Chain, chunk_size, jacobian, scan_chunks
from ._custom_types import States
from ._scan import AbstractScan


class ChainAdjoint(optx.AbstractAdjoint):
    """Differentiates a chain at its solution, whatever the solver did.

    The tangent of `z_t = step(z_{t-1}, x_t)` is the affine recurrence

    `dz_t = A_t dz_{t-1} + (∂step/∂x dx_t + ∂step/∂θ dθ)`, `dz_0 = d init`,

    with the whole Jacobian `A_t` at the solution, and its transpose is backpropagation
    through time. Right in forward and reverse mode and to every order; the gradient
    with respect to the guess is zero. Jacobian blocks are not kept between the passes:
    they are formed again, a chunk at a time, where they are needed.

    Unlike the implicit adjoints of Optimistix and Lineax it never raises, so a NaN in
    one sample of a `vmap` leaves the gradients of the others as they are.
    """

    scan: str | AbstractScan = "auto"
    chunk: int | None = None

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        del rewrite_fn, tags
        inputs = (*inputs, ft.partial(eqxi.while_loop, kind="lax"))
        return _solve(primal_fn, inputs, self)


ChainAdjoint.__init__.__doc__ = """**Arguments:**

- `scan`: an [`parafix.core.jax.AbstractScan`][] or a registered name, for the tangent
    recurrence and its transpose; `"auto"` goes by the platform.
- `chunk`: hold Jacobian blocks for this many times at once; `None` decides.
"""


@eqx.filter_custom_jvp
def _solve(primal_fn, inputs, adjoint):
    del adjoint
    return jax.tree.map(jnp.asarray, primal_fn(inputs))


@_solve.def_jvp
def _solve_jvp(primals, tangents):
    primal_fn, inputs, adjoint = primals
    _, t_inputs, _ = tangents
    z, rest = _solve(primal_fn, inputs, adjoint)
    # Where Optimistix has its options.
    problem, t_problem = inputs[4]["problem"], t_inputs[4]["problem"]
    t_z = _tangent(adjoint, problem, t_problem, z)
    t_rest = jax.custom_derivatives.zero_from_primal(rest, symbolic_zeros=True)
    return (z, rest), (t_z, t_rest)


def _tangent(
    adjoint: ChainAdjoint, problem: Chain, t_problem: PyTree[Any], z: States
) -> States:
    # Checkpointed, so that what reverse mode holds between the passes is `z`, `xs` and
    # `theta`: never the blocks.
    @eqx.filter_checkpoint
    def body(last, elements):
        lag, xs, t_xs = elements

        def f(xs, step):
            return jax.vmap(step)(lag, xs)

        primals, tangents = (xs, problem.step), (t_xs, t_problem.step)
        if jax.tree.leaves(tangents):
            _, b = eqx.filter_jvp(f, primals, tangents)
        else:
            b = jnp.zeros_like(lag)
        _, a = jax.vmap(lambda z, x: jacobian(problem.step, z, x))(lag, xs)
        t_z = affine_scan(a, b, last, scan=adjoint.scan)
        return t_z[-1], t_z

    last = jnp.zeros_like(problem.init) if t_problem.init is None else t_problem.init
    _, t_z = scan_chunks(
        body,
        last,
        (problem.lag(z), problem.xs, t_problem.xs),
        problem.length,
        chunk_size(adjoint.chunk, problem.length, problem.size),
    )
    return t_z
