"""One step of a Diffrax solver, as the step of a chain."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree, Real


class Carry(NamedTuple):
    """What one step hands on to the next."""

    y: PyTree
    # Of solvers that remember more than `y`; `None` of all others.
    solver_state: PyTree


class Report(NamedTuple):
    """What a step tells beside the carry that it leads to."""

    result: diffrax.RESULTS
    dense_info: dict[str, PyTree]
    solver_state: PyTree


# The start of a step, its end, and whether a jump precedes it (`None`: it does not).
Interval = tuple[Real[Array, "..."], Real[Array, "..."], Any]


class Step(eqx.Module):
    """`(carry, interval) -> (carry, report)`, by `solver.step`."""

    terms: PyTree
    solver: diffrax.AbstractSolver
    args: PyTree
    remembers: bool = eqx.field(static=True)

    @classmethod
    def of(
        cls, terms: PyTree, solver: diffrax.AbstractSolver, args: PyTree, state: PyTree
    ) -> "Step":
        """The step of a solver whose first state is `state`.

        A Runge-Kutta method keeps nothing but the last stage of the step before, if
        that is the first stage of the next: computed again from `y` it is the same, and
        the chain has half the size.
        """
        runge_kutta = isinstance(solver, diffrax.AbstractRungeKutta)
        remembers = bool(jax.tree.leaves(state)) and not runge_kutta
        return cls(terms, differentiable(solver), args, remembers)

    def start(self, y: PyTree, state: PyTree) -> Carry:
        return Carry(y, state if self.remembers else None)

    def __call__(self, carry: Carry, interval: Interval) -> tuple[Carry, Report]:
        before, after, jump = interval
        state = carry.solver_state
        if not self.remembers:
            state = self.solver.init(self.terms, before, after, carry.y, self.args)
        y, _, info, state, result = self.solver.step(
            self.terms,
            before,
            after,
            carry.y,
            self.args,
            state,
            False if jump is None else jump,
        )
        return self.start(y, state), Report(result, info, state)

    def evaluate(
        self, before: Array, after: Array, info: dict[str, PyTree], t: Array
    ) -> PyTree:
        """The solution at time `t` of a step, by the interpolation of the solver."""
        path: Any = self.solver.interpolation_cls(t0=before, t1=after, **info)
        return path.evaluate(t)


class GuardedStep(eqx.Module):
    """The step of an implicit solver, at states of which some lead nowhere.

    On the way to a solution there are iterates whose implicit equation has none that is
    found. There the derivative of a root is asked for at what is no root, and raises.
    So the step is tried first, and where it fails it is NaN, without a derivative: it
    is taken from the origin instead, over no time. (A derivative that is NaN would
    raise, too, in the linear solve of an earlier step, and for all samples of a batch.)
    """

    step: Step
    origin: Carry
    t0: Real[Array, ""]

    def __call__(self, carry: Carry, interval: Interval) -> tuple[Carry, Report]:
        tried, report = _tried(self.step, carry, interval)
        sound = diffrax.is_okay(report.result)
        for x in jax.tree.leaves(tried.y):
            sound = sound & jnp.isfinite(x).all()

        def select(x, y):
            return jax.tree.map(lambda x, y: jnp.where(sound, x, y), x, y)

        before, after, jump = interval
        before, after = select((before, after), (self.t0, self.t0))
        carry = select(carry, self.origin)
        new, found = self.step(carry, (before, after, jump))
        result = diffrax.RESULTS.where(sound, found.result, report.result)

        def or_nan(x):
            return jnp.where(sound, x, jnp.nan) if eqx.is_inexact_array(x) else x

        y, info = jax.tree.map(or_nan, (new.y, found.dense_info))
        return Carry(y, new.solver_state), Report(result, info, found.solver_state)


def _tried(step, carry, interval):
    """The step, without any derivative: neither to what its field closes over."""
    attempt = eqx.filter_closure_convert(step, carry, interval), carry, interval
    arrays, others = eqx.partition(attempt, eqx.is_array)
    step, *at = eqx.combine(jax.tree.map(lax.stop_gradient, arrays), others)
    return step(*at)


def differentiable(solver: diffrax.AbstractSolver) -> diffrax.AbstractSolver:
    """`solver`, with a loop over its stages that has every derivative.

    By itself that loop has no forward mode, in which Jacobians are formed.
    """
    if isinstance(solver, diffrax.AbstractWrappedSolver):
        inner: Any = differentiable(solver.solver)
        return eqx.tree_at(lambda s: s.solver, solver, inner)
    staged = isinstance(solver, diffrax.AbstractRungeKutta | diffrax.AbstractSRK)
    if staged and getattr(solver, "scan_kind", "") is None:
        return eqx.tree_at(
            lambda s: s.scan_kind, solver, "bounded", is_leaf=lambda x: x is None
        )
    return solver


def first_failure(
    results: diffrax.RESULTS | None,
) -> tuple[diffrax.RESULTS, Int[Array, ""]]:
    """Of the results of all steps, that of the first which failed; and which it is."""
    if results is None:
        return diffrax.RESULTS.successful, jnp.array(0)
    bad = ~jax.vmap(diffrax.is_okay)(results)
    # Where none is bad this is the first step, which went well.
    first = jnp.argmax(bad)
    return jax.tree.map(lambda x: x[first], results), first
