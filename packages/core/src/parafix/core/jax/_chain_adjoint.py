import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._adjoint import AbstractTangent, reached
from ._chain import Chain, chunk_size, jacobian, scan_chunks
from ._check import checked_count, checked_tolerance
from ._custom_types import States
from ._iterated import MOST_PRODUCTS, solve_iterated
from ._scan import AbstractScan


class ChainAdjoint(AbstractTangent):
    """Differentiates a chain at its solution, whatever the solver did.

    The tangent of `z_t = step(z_{t-1}, x_t)` is the affine recurrence

    `dz_t = A_t dz_{t-1} + (∂step/∂x dx_t + ∂step/∂θ dθ)`, `dz_0 = d init`,

    with the whole Jacobian `A_t` at the solution, and its transpose is backpropagation
    through time. Where the chain is reset `A_t` is zero, and `origin` is one more of
    the inputs. Right in forward and reverse mode and to every order; the gradient
    with respect to the guess is zero.

    It is solved in one of two ways. Either Jacobian blocks are formed, a chunk at a
    time and again in every pass, so that none is kept, and one scan solves it. Or it is
    iterated until its own residual is rounding, each sweep one product of all `A_t`
    with a state: no block is formed, and the memory is `O(T n)`. Where a chain forgets,
    a few dozen sweeps do, whatever `n` is; where it does not, up to `T`.
    """

    scan: str | AbstractScan = "auto"
    chunk: int | None = None
    iterate: bool | None = None
    rtol: float | None = None
    max_steps: int | None = None

    def __check_init__(self):
        checked_count("chunk", self.chunk)
        checked_tolerance("rtol", self.rtol, None)
        checked_count("max_steps", self.max_steps)

    def iterates(self, problem: Chain) -> bool:
        """Whether no Jacobian of `problem` is formed."""
        if self.iterate is not None:
            return self.iterate
        return problem.structure.num_linear(problem.size) > MOST_PRODUCTS

    def tangent(self, inputs, t_inputs, z, memory):
        del memory
        # Where Optimistix has its options.
        options, t_options = inputs[4], t_inputs[4]
        problem, t_problem = options["problem"], t_options["problem"]
        return _tangent(self, problem, t_problem, z, options["throw"])


ChainAdjoint.__init__.__doc__ = """**Arguments:**

- `scan`: an [`parafix.core.jax.AbstractScan`][] or a registered name, for the tangent
    recurrence and its transpose; `"auto"` goes by the platform.
- `chunk`: solve for this many times at once, and hold their Jacobian blocks; `None`
    decides.
- `iterate`: whether to iterate, and form no Jacobian. By default where one takes more
    than 128 products, as that of a step without a structure and with more than 128
    entries.
- `rtol`: how small a residual must be to end the iteration, relative to the largest
    number on the way there; by default 8 times what the step rounds by.
- `max_steps`: at most this many sweeps (of each chunk); by default two more than there
    are times, which always is enough. If they do not suffice, derivatives are an error
    where the verb throws, and NaN where it does not; those of its sample, under `vmap`.
"""


def _tangent(
    adjoint: ChainAdjoint,
    problem: Chain,
    t_problem: PyTree[Any],
    z: States,
    throw: bool,
) -> States:
    iterates = adjoint.iterates(problem)
    entries = 0 if iterates else problem.num_entries
    rtol = adjoint.rtol
    rtol = 8 * float(problem.eps.max()) if rtol is None else rtol

    # Checkpointed, so that what reverse mode holds between the passes is `z`, `xs` and
    # `theta`: never the blocks.
    @eqx.filter_checkpoint
    def body(last, elements):
        lag, xs, t_xs, resets = elements

        def f(xs, step, start):
            if resets is None:
                return jax.vmap(step)(lag, xs)
            return jax.vmap(step)(jnp.where(resets[:, None], start, lag), xs)

        primals, tangents = (xs, problem.step), (t_xs, t_problem.step)
        if resets is None:
            primals, tangents = (*primals, None), (*tangents, None)
        else:
            primals, tangents = (*primals, problem.start), (*tangents, t_start)
        if jax.tree.leaves(tangents):
            _, b = eqx.filter_jvp(f, primals, tangents)
        else:
            b = jnp.zeros_like(lag)
        if iterates:
            t_z = solve_iterated(
                _product(problem.step, lag, xs, resets),
                b,
                last,
                adjoint.scan,
                resets,
                rtol,
                adjoint.max_steps,
                ft.partial(reached, throw),
            )
            return t_z[-1], t_z
        _, a = jax.vmap(lambda z, x: jacobian(problem.step, z, x))(lag, xs)
        t_z = problem.structure.solve(a, b, last, adjoint.scan, resets)
        return t_z[-1], t_z

    last = jnp.zeros_like(problem.init) if t_problem.init is None else t_problem.init
    t_start = t_problem.init if problem.origin is None else t_problem.origin
    _, t_z = scan_chunks(
        body,
        last,
        (problem.lag(z), problem.xs, t_problem.xs, problem.resets),
        problem.length,
        chunk_size(adjoint.chunk, problem.length, entries),
    )
    return t_z


def _product(step, lag, xs, resets):
    """The products of the Jacobians of all times with a vector at each."""
    _, tangent = jax.linearize(lambda lag: jax.vmap(step)(lag, xs), lag)
    if resets is None:
        return tangent
    resets = resets[:, None]
    # On both sides, so that no NaN is multiplied by zero, transposed or not.
    return lambda v: jnp.where(resets, 0, tangent(jnp.where(resets, 0, v)))
