from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optimistix as optx

from ._iteration import AbstractDense


# What Optimistix calls a solver, by the function it works on.
FOREIGN = (
    optx.AbstractFixedPointSolver,
    optx.AbstractRootFinder,
    optx.AbstractLeastSquaresSolver,
    optx.AbstractMinimiser,
)


class Foreign(AbstractDense):
    """A solver of Optimistix, held to what parafix promises.

    It moves as it does, and is measured from outside: one more evaluation in every
    step. Its own idea of when to stop is not asked for. Its evaluations are counted
    where they are traced, its products with the Jacobian are not.
    """

    rtol: Any
    atol: Any
    solver: optx.AbstractIterativeSolver

    # A step that is rejected leaves the iterate where it is.
    rests: ClassVar[bool] = False

    def start(self, fn, z):
        out, _ = jax.eval_shape(_as_asked(self.solver, fn), z, None)
        counted, calls = _counted(fn)
        solve = _as_asked(self.solver, counted)
        memory = self.solver.init(solve, z, None, {}, out, None, frozenset())
        return memory, calls()

    def move(self, fn, z, g, jvp, memory, done):
        del g, jvp, done
        counted, calls = _counted(fn)
        solve = _as_asked(self.solver, counted)
        new, memory, _ = self.solver.step(solve, z, None, {}, memory, frozenset())
        return new, memory, calls(), jnp.array(0)


def _counted(fn):
    """`fn`, and how many times it has been traced: once for every evaluation."""
    calls = 0

    def counted(z):
        nonlocal calls
        calls += 1
        return fn(z)

    return counted, lambda: calls


def _as_asked(solver, fn):
    """`f` in the form that the solver works on."""

    def fixed_point(z, args):
        del args
        return fn(z), None

    def root(z, args):
        del args
        return fn(z) - z, None

    def objective(z, args):
        return 0.5 * jnp.sum(root(z, args)[0] ** 2), None

    if isinstance(solver, optx.AbstractFixedPointSolver):
        return fixed_point
    if isinstance(solver, optx.AbstractMinimiser):
        return objective
    return root


def as_measured(solver: Any) -> AbstractDense:
    """`solver` itself, or an Optimistix solver under parafix's promises."""
    if isinstance(solver, AbstractDense):
        return solver
    # (Pyright takes the property `norm` for an argument.)
    return Foreign(  # pyright: ignore[reportCallIssue]
        rtol=solver.rtol, atol=solver.atol, solver=solver
    )
