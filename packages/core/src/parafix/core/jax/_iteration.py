import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import optimistix as optx
from equinox import AbstractVar
from jax import lax
from jaxtyping import ArrayLike, PyTree

from ._check import checked_tolerance
from ._custom_types import BoolScalar, FloatScalar, IntScalar, State
from ._measure import max_abs, ratio, tolerance
from ._result import raise_if, RESULTS


Map = Callable[[State], State]


class _IterationState(eqx.Module):
    best: State
    residual: FloatScalar
    # The first `max |f(z) - z|`, beside which growth is divergence.
    first: FloatScalar
    converged: BoolScalar
    nonfinite: BoolScalar
    diverged: BoolScalar
    failed: BoolScalar
    stalled: BoolScalar
    num_steps: IntScalar
    num_evals: IntScalar
    num_linear: IntScalar
    memory: PyTree


class AbstractDense(optx.AbstractFixedPointSolver):
    """Measures the iterates of a dense problem `z = f(z)`, and decides.

    For one sample with a flat state `(n,)`:

    - An iterate has converged when `max |f(z) - z| / (atol + rtol |z|)` is at most one.
    - `nonfinite`: `f` returned NaN or infinity. `diverged`: residuals grew by
      `eps^(-3/4)`. `stalled`: an iterate equals the one before it, to rounding.
      `linear_solve_failed`: a step was not finite where `f` was.
    - Whatever happens, the iterate of lowest residual comes back.
    """

    # One number, as in Optimistix, or one for each entry of a state.
    rtol: AbstractVar[ArrayLike]  # pyright: ignore[reportIncompatibleVariableOverride]
    atol: AbstractVar[ArrayLike]  # pyright: ignore[reportIncompatibleVariableOverride]
    # Whether `move` wants the product with the Jacobian of `f`.
    linearises: ClassVar[bool] = False
    # Whether an iterate that stays where it is means that no other will come.
    rests: ClassVar[bool] = True

    def __check_init__(self):
        checked_tolerance("rtol", self.rtol, None)
        checked_tolerance("atol", self.atol, None)

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        # Optimistix asks every solver for one.
        return optx.max_norm

    @abc.abstractmethod
    def start(self, fn: Map, z: State) -> tuple[PyTree, int]:
        """What is remembered from step to step, and the evaluations this took."""

    @abc.abstractmethod
    def move(
        self,
        fn: Map,
        z: State,
        g: State,
        jvp: Map | None,
        memory: PyTree,
        done: BoolScalar,
    ) -> tuple[State, PyTree, IntScalar | int, IntScalar]:
        """The next iterate, the memory, the evaluations and the products it took.

        `done` says that nothing depends on what is returned.
        """

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        del options, f_struct, aux_struct, tags
        infinite, no, none = jnp.array(jnp.inf, y.dtype), jnp.array(False), jnp.array(0)
        memory, evals = self.start(lambda z: fn(z, args)[0], y)
        evals = jnp.array(evals)
        return _IterationState(
            y, infinite, infinite, no, no, no, no, no, none, evals, none, memory
        )

    def step(self, fn, y, args, options, state, tags):
        del tags

        def f(z):
            return fn(z, args)[0]

        value, jvp = jax.linearize(f, y) if self.linearises else (f(y), None)
        g = value - y
        eps = float(jnp.finfo(y.dtype).eps)
        residual = max_abs(ratio(g, tolerance(self.rtol, self.atol, y)))
        size = max_abs(g)
        first = jnp.where(state.num_steps == 0, size, state.first)
        nonfinite = ~jnp.isfinite(value).all()
        # False for NaN.
        better = residual < state.residual
        converged = residual <= 1
        diverged = ~nonfinite & ~converged & (size > first * eps**-0.75)
        done = nonfinite | converged | diverged
        new, memory, evals, linear = self.move(f, y, g, jvp, state.memory, done)
        new = options.get("round", lambda z: z)(new)
        failed = ~done & ~jnp.isfinite(new).all()
        new = jnp.where(jnp.isfinite(new) & ~done, new, y)
        still = (jnp.abs(new - y) <= eps * jnp.abs(y)).all()
        state = _IterationState(
            best=jnp.where(better, y, state.best),
            residual=jnp.where(better, residual, state.residual),
            first=first,
            converged=converged,
            nonfinite=nonfinite,
            diverged=diverged,
            failed=failed,
            stalled=~done & ~failed & still & self.rests,
            num_steps=state.num_steps + 1,
            num_evals=state.num_evals + 1 + evals,
            num_linear=state.num_linear + linear,
            memory=memory,
        )
        return new, state, None

    def terminate(self, fn, y, args, options, state, tags):
        del fn, y, args, options, tags
        ended = state.converged | state.nonfinite | state.diverged
        return ended | state.failed | state.stalled, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        del fn, args, tags, result
        result = RESULTS.max_steps_reached
        for flag, meaning in (
            (state.stalled, RESULTS.stalled),
            (state.failed, RESULTS.linear_solve_failed),
            (state.diverged, RESULTS.diverged),
            # A guess that is not finite stops the loop before anything is evaluated.
            (state.nonfinite | ~jnp.isfinite(y).all(), RESULTS.nonfinite),
            (state.converged, RESULTS.successful),
        ):
            result = RESULTS.where(flag, meaning, result)
        best = state.best
        if options.get("throw", False):
            best = raise_if(best, result)
        stats = {
            "num_steps": state.num_steps,
            "num_evals": state.num_evals,
            "num_linear": state.num_linear,
            "residual": state.residual,
            "result": result,
        }
        return best, aux, stats


class AbstractIteration(AbstractDense):
    """Solves a dense problem `z = f(z)` by one evaluation of `f` for every iterate.

    Subclasses say how to move, and nothing else: evaluating, measuring, keeping the
    iterate of lowest residual and deciding is done for them. The state is flat, `(n,)`,
    whatever the pytree that the user sees.

    A subclass that sets `linearises: ClassVar[bool] = True` gets the product with the
    Jacobian of `f`, at no further evaluation. One that learns the inverse Jacobian may
    have a method `inverse_jacobian(memory)`, which returns `v -> H v` with `H` near the
    inverse of `d(f - z)/dz`; adjoints may ask for it.
    """

    @abc.abstractmethod
    def init_memory(self, z: State) -> PyTree:
        """What is remembered from step to step: a pytree of arrays, or `None`.

        **Arguments:**

        - `z`: shape `(n,)`, the guess.
        """

    @abc.abstractmethod
    def advance(
        self, z: State, g: State, jvp: Map | None, memory: PyTree
    ) -> tuple[State, PyTree, IntScalar | int]:
        """The next iterate.

        **Arguments:**

        - `z`: shape `(n,)`, the iterate.
        - `g`: shape `(n,)`, the residual `f(z) - z`.
        - `jvp`: `v -> J v` with the Jacobian of `f` at `z`, if `linearises`.
        - `memory`: as left by the step before.

        **Returns:**

        The next iterate `(n,)`, the memory, and the number of Jacobian-vector products
        that this step took.
        """

    def start(self, fn, z):
        del fn
        return self.init_memory(z), 0

    def move(self, fn, z, g, jvp, memory, done):
        del fn

        def advance():
            new, memory_, count = self.advance(z, g, jvp, memory)
            return new, memory_, jnp.asarray(count)

        if not self.linearises:
            new, memory, linear = advance()
            return new, memory, 0, linear
        # Products are dear: the last step is not taken, unless a neighbour in a `vmap`
        # takes another.
        new, memory, linear = lax.cond(
            eqxi.unvmap_all(done), lambda: (z, memory, jnp.array(0)), advance
        )
        # Nor is it counted, if a neighbour has it taken.
        return new, memory, 0, jnp.where(done, 0, linear)
