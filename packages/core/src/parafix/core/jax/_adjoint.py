import abc
import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax import lax
from jaxtyping import Array, PyTree

from ._check import checked_count
from ._custom_types import BoolScalar, State
from ._linear import GMRES, linear_solve
from ._named import named
from ._result import RESULTS


_Map = Callable[[State], State]


def as_adjoint(adjoint: Any) -> optx.AbstractAdjoint:
    """The adjoint that `adjoint` names, or `adjoint` itself."""
    if isinstance(adjoint, str):
        return named("adjoint", adjoint)()
    if not isinstance(adjoint, optx.AbstractAdjoint):
        raise TypeError(
            "`adjoint` must be the name of a registered adjoint or an object such as "
            f"`ImplicitAdjoint()`, got {adjoint!r}."
        )
    return adjoint


class Loop(optx.AbstractAdjoint):
    """For a solve inside one whose adjoint does it all: only how to loop."""

    while_loop: Callable = eqx.field(static=True)

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        del rewrite_fn, tags
        return primal_fn((*inputs, self.while_loop))


class AbstractTangent(optx.AbstractAdjoint):
    """Differentiates a solve at its solution, whatever the solver did.

    Subclasses say what the tangent of the solution is, linearly in those of the
    inputs; everything else follows: forward and reverse mode, to every order. The
    gradient with respect to the guess is zero.

    Unlike the implicit adjoints of Optimistix and Lineax it never raises because of a
    NaN, so that one sample of a `vmap` leaves the gradients of the others as they are.
    """

    @abc.abstractmethod
    def tangent(self, inputs: PyTree, t_inputs: PyTree, z: Any, memory: PyTree) -> Any:
        """The tangent of the solution `z`.

        **Arguments:**

        - `inputs`, `t_inputs`: those of the solve, in the order of Optimistix, and
            their tangents, with `None` where there is none.
        - `z`: the solution.
        - `memory`: what else the solve returned.
        """

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        del rewrite_fn, tags
        inputs = (*inputs, ft.partial(eqxi.while_loop, kind="lax"))
        return _solve(primal_fn, inputs, self)


@eqx.filter_custom_jvp
def _solve(primal_fn, inputs, adjoint):
    del adjoint
    return jax.tree.map(jnp.asarray, primal_fn(inputs))


@_solve.def_jvp
def _solve_jvp(primals, tangents):
    primal_fn, inputs, adjoint = primals
    _, t_inputs, _ = tangents
    z, rest = _solve(primal_fn, inputs, adjoint)
    t_z = adjoint.tangent(inputs, t_inputs, z, rest)
    # What is not a number has no tangent. And a linear function has one that does not
    # need `z`: then nobody would solve, and nobody would hear of a failure.
    t_z = jnp.where(z == z, t_z, jnp.nan)
    t_rest = jax.custom_derivatives.zero_from_primal(rest, symbolic_zeros=True)
    return (z, rest), (t_z, t_rest)


def reached(throw: bool, t: Array, ok: BoolScalar) -> Array:
    """`t` if a linear solve is `ok`; else an error if `throw`, and NaN if not."""
    if throw:
        return eqx.error_if(t, ~ok, RESULTS[RESULTS.linear_solve_failed])
    return jnp.where(ok, t, jnp.nan)


class AbstractDenseTangent(AbstractTangent):
    """For a dense problem `z = f(z, args)`: `t = J t + (∂f/∂args d args + ...)`.

    Subclasses solve this equation, or do something cheaper that is linear in the
    right-hand side.
    """

    @abc.abstractmethod
    def solve(self, jvp: _Map, b: State, throw: bool, inverse: _Map | None) -> State:
        """`t` with `t - jvp(t) = b`, or what stands for it.

        **Arguments:**

        - `jvp`: the product with the Jacobian of `f` at the solution.
        - `b`: shape `(n,)`, the tangent of `f` at a fixed state.
        - `throw`: whether a solve that fails is to raise.
        - `inverse`: `v -> H v` with `H` near the inverse of `J - I`, if the solver has
            learnt one.
        """

    def tangent(self, inputs, t_inputs, z, memory):
        fn, solver, _, args, options, *_ = inputs
        if "problem" in options:
            raise TypeError(
                f"{type(self).__name__} is for dense problems; chains are "
                'differentiated by adjoint="implicit".'
            )
        t_fn, _, _, t_args, *_ = t_inputs

        def of_inputs(fn, args):
            return fn(z, args)[0]

        if jax.tree.leaves((t_fn, t_args)):
            _, b = eqx.filter_jvp(of_inputs, (fn, args), (t_fn, t_args))
        else:
            b = jnp.zeros_like(z)
        _, jvp = jax.linearize(lambda z: fn(z, args)[0], z)
        learnt = getattr(solver, "inverse_jacobian", None)
        inverse = None if learnt is None else learnt(memory[1])
        return self.solve(jvp, b, options["throw"], inverse)


class ImplicitAdjoint(AbstractDenseTangent):
    """The implicit function theorem: `(I - J) t = b`, solved without a matrix.

    The gradient of the solution, whatever the solver did; the memory of one
    linearisation, however many steps it took. On a chain it is a
    [`parafix.core.jax.ChainAdjoint`][].

    A linear solve that fails raises if `throw=True` in the verb, and makes the
    derivatives of its sample NaN otherwise, and no other's.
    """

    linear_solver: lx.AbstractLinearSolver | GMRES = GMRES()

    def solve(self, jvp, b, throw, inverse):
        del inverse
        checked = ft.partial(reached, throw)
        return linear_solve(lambda t: t - jvp(t), b, self.linear_solver, checked)[0]


ImplicitAdjoint.__init__.__doc__ = """**Arguments:**

- `linear_solver`: a [`parafix.core.jax.GMRES`][], which has a tolerance of its own, or
    a solver of Lineax, which may form the matrix.
"""


class OneStepAdjoint(AbstractDenseTangent):
    """One application of `f` is differentiated: `t = b`. No linear solve.

    Not the gradient, but a direction of descent where `f` contracts and `∂f/∂args` is
    well conditioned.

    ??? cite "Reference"

        Fung, Heaton, Li, McKenzie, Osher and Yin, "JFB: Jacobian-free backpropagation
        for implicit networks", AAAI 2022.
    """

    def solve(self, jvp, b, throw, inverse):
        del jvp, throw, inverse
        return b


class PhantomAdjoint(AbstractDenseTangent):
    """Some damped steps are differentiated: `t' = damping t + (1 - damping)(J t + b)`.

    From zero, with everything evaluated at the solution; the more steps, the closer to
    the gradient, where the iteration converges.

    ??? cite "Reference"

        Geng, Zhang, Bai, Wang and Lin, "On training implicit models", NeurIPS 2021,
        the Neumann form.
    """

    steps: int = 5
    damping: float = 0.5

    def __check_init__(self):
        checked_count("steps", self.steps)

    def solve(self, jvp, b, throw, inverse):
        del throw, inverse

        def step(t, _):
            return self.damping * t + (1 - self.damping) * (jvp(t) + b), None

        t, _ = lax.scan(step, jnp.zeros_like(b), None, length=self.steps)
        return t


PhantomAdjoint.__init__.__doc__ = """**Arguments:**

- `steps`: how many steps are differentiated.
- `damping`: how much of the old iterate each keeps.
"""


class UnrolledAdjoint(optx.AbstractAdjoint):
    """Differentiates what the solver did, step by step, guess included.

    Checkpointed: the memory grows with the logarithm of `max_steps`, not with the
    steps. Forward and reverse mode, to every order.
    """

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        del rewrite_fn, tags
        if "problem" in inputs[4]:
            raise TypeError(
                "UnrolledAdjoint is for dense problems; chains are differentiated by "
                'adjoint="implicit".'
            )
        while_loop = ft.partial(eqxi.while_loop, kind="bounded", base=4)
        return primal_fn((*inputs, while_loop))
