import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jax import lax
from jaxtyping import Array, ArrayLike, PyTree, Shaped

from ._check import checked_tolerance
from ._custom_types import BoolScalar, FloatScalar, IntScalar
from ._entries import all_finite, chosen, count_of, distance, finite, same


Entries = PyTree[Shaped[Array, "N ..."]]


class AbstractCausalSweep(eqx.Module):
    """Solves `z = f(z)` where entry `i` of `f(z)` depends on entries before `i` alone.

    Subclasses say which iterate to try next, and nothing else. The loop around them
    evaluates `f` once for every iterate and owns all that makes the answer right,
    whatever they propose:

    - With the first `p` entries final, entry `p` of `f(z)` is final, and so is every
      later one up to the first that differs from that of `z`. That is the certified
      prefix; it grows in every sweep, and is never written again.
    - What is not finite beyond it is replaced by the guess, so that an overflow ahead
      cannot reach the prefix by way of a product with zero. Where `f` overflows inside,
      at a finite iterate, and the next entry comes out as NaN or infinite, it is not
      accepted before it has come out so with the guess in all entries ahead, which is
      what the sequential program evaluates.
    - Two sweeps that agree in all entries prove the solution.
    """

    rtol: AbstractVar[ArrayLike]
    atol: AbstractVar[ArrayLike]
    # Whether what it does needs numbers that can be added and scaled.
    for_floats_only: ClassVar[bool] = False

    def __check_init__(self):
        checked_tolerance("rtol", self.rtol, None)
        checked_tolerance("atol", self.atol, None)

    def init_memory(self, z: Entries) -> PyTree:
        """What is remembered from sweep to sweep: a pytree of arrays, or `None`.

        **Arguments:**

        - `z`: leaves `(N, ...)`, the guess.
        """
        del z

    @abc.abstractmethod
    def propose(
        self, z: Entries, f: Entries, prefix: IntScalar, memory: PyTree
    ) -> tuple[Entries, PyTree]:
        """The next iterate, of which only entries from `prefix` on are taken.

        **Arguments:**

        - `z`: leaves `(N, ...)`, the iterate.
        - `f`: leaves `(N, ...)`, its image.
        - `prefix`: how many entries are final after this evaluation.
        - `memory`: as left by the sweep before.

        **Returns:**

        The iterate and the memory.
        """


class CausalState(eqx.Module):
    """Where a causal solve stands."""

    z: Entries
    memory: PyTree
    prefix: IntScalar
    num_steps: IntScalar
    # Whether what is beyond the prefix is the guess.
    clean: BoolScalar
    # Of the iterate that was evaluated last, before it was rewritten.
    residual: FloatScalar
    proven: BoolScalar
    close: BoolScalar
    contradicted: BoolScalar


def sweep_until(
    fn: Callable[[Entries], Entries],
    guess: Entries,
    solver: AbstractCausalSweep,
    max_steps: int,
    *,
    exact: bool,
) -> CausalState:
    """Sweeps until two agree; with `exact=False`, until they do to within tolerance.

    At least one entry, and one leaf. `contradicted`: an entry that was final has
    changed, so that `fn` is not causal, or not deterministic. That is looked for bit
    for bit if `exact`, and beyond tolerance if not.
    """
    length = count_of(guess)
    guess = _cleaned(guess)
    index = jnp.arange(length)

    def unfinished(state):
        ended = state.proven | state.contradicted
        ended = ended if exact else ended | state.close
        return ~ended & (state.num_steps < max_steps)

    def body(state):
        # By itself: fused with what follows, its rounding could be another.
        f = lax.optimization_barrier(fn(lax.optimization_barrier(state.z)))
        equal, sound = same(state.z, f), all_finite(f)
        far = distance(state.z, f, solver.rtol, solver.atol)
        final = index < state.prefix
        changed = sound & (~equal if exact else ~(far <= 1))
        # A NaN in the prefix may well reach what it has no business with.
        contradicted = (final & changed).any() & all_finite(state.z).all()
        far = jnp.where(final | equal, 0, far)
        close = (far <= 1).all()
        num_steps = state.num_steps + 1
        first = jnp.min(jnp.where(final | equal, length, index))
        accepted = state.clean | (sound | (index != first)).all()
        # What is returned is what was measured.
        stops = jnp.array(False) if exact else close
        grows = accepted & ~stops
        prefix = jnp.minimum(jnp.where(grows, first + 1, first), length)
        ahead, memory = solver.propose(state.z, f, prefix, state.memory)
        # From the guess one entry at least is accepted. So after `k` sweeps there are
        # `k - 1`, and `N + 1` sweeps are enough however often one is in vain.
        clean = ~accepted | (prefix < num_steps)
        ahead = chosen(all_finite(ahead) & ~clean, ahead, guess)
        z = chosen(index < prefix, f, ahead)
        z = chosen(final | stops, state.z, z)
        return CausalState(
            z,
            memory,
            prefix,
            num_steps,
            clean,
            far.max(),
            first == length,
            close,
            contradicted,
        )

    no, none = jnp.array(False), jnp.array(0)
    yes = jnp.array(True)
    dtype = distance(guess, guess, solver.rtol, solver.atol).dtype
    unknown = jnp.full((), jnp.inf, dtype)
    memory = solver.init_memory(guess)
    state = CausalState(guess, memory, none, none, yes, unknown, no, no, no)
    return lax.while_loop(unfinished, body, state)


def one_after_the_other(fn: Callable[[Entries], Entries], guess: Entries) -> Entries:
    """The sequential program: one entry of `fn(z)` is accepted in every pass."""
    length: Any = count_of(guess)
    index = jnp.arange(length)
    guess = _cleaned(guess)

    def body(i, z):
        f = lax.optimization_barrier(fn(lax.optimization_barrier(z)))
        return chosen(index == i, f, z)

    return lax.fori_loop(0, length, body, guess)


def _cleaned(guess):
    """The guess with zeros for what is not finite."""
    return jax.tree.map(lambda x: jnp.where(finite(x), x, jnp.zeros_like(x)), guess)
