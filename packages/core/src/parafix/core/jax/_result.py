import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, TYPE_CHECKING, TypeVar

import equinox as eqx
import jax.numpy as jnp

from .._sentences import sentence, SENTENCES
from ._custom_types import FloatScalar, IntScalar


if TYPE_CHECKING:
    from ._chain import Chain, Leaf

_Token = TypeVar("_Token")


class RESULTS(eqx.Enumeration):
    """How a solve ended. Each member is a sentence that names cause and remedy.

    The PyTorch backend has the same members with the same codes. Members are compared
    with `==`, traced or not; `RESULTS[item]` is the sentence.
    """

    successful = SENTENCES["successful"]
    max_steps_reached = SENTENCES["max_steps_reached"]
    nonfinite = SENTENCES["nonfinite"]
    diverged = SENTENCES["diverged"]
    stalled = SENTENCES["stalled"]
    ill_conditioned = SENTENCES["ill_conditioned"]
    not_causal = SENTENCES["not_causal"]
    linear_solve_failed = SENTENCES["linear_solve_failed"]


# In the order of their codes.
_MEMBERS = (
    RESULTS.successful,
    RESULTS.max_steps_reached,
    RESULTS.nonfinite,
    RESULTS.diverged,
    RESULTS.stalled,
    RESULTS.ill_conditioned,
    RESULTS.not_causal,
    RESULTS.linear_solve_failed,
)


# An error carries one integer, so the growth is told to one of these factors.
_GROWTHS = (1, 1.01, 1.02, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2, 3, 5, 10, 30, 100, 1e4)


@dataclasses.dataclass(frozen=True)
class _Sentences(Sequence[str]):
    """The sentence of every (code, position, leaf, growth), made when it is asked for.

    Errors under `jit` take a message by its number, and positions are known only then.
    """

    names: tuple[str, ...]

    def number(self, code, position, leaf, growth):
        kind = position.dtype
        code, leaf = code.astype(kind), leaf.astype(kind)
        number = (position * len(self.names) + leaf) * len(_MEMBERS) + code
        # NaN and what does not grow are level zero.
        level = jnp.searchsorted(jnp.array(_GROWTHS, growth.dtype), jnp.exp(growth))
        level = jnp.minimum(jnp.where(growth > 0, level, 0), len(_GROWTHS) - 1)
        full = number * len(_GROWTHS) + level.astype(kind)
        # An even number says nothing of the growth: where the place is a large one.
        fits = number < jnp.iinfo(kind).max // (2 * len(_GROWTHS)) - 1
        return jnp.where(fits, 2 * full + 1, 2 * number)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: Any) -> str:  # No slice is taken.
        number, fits = divmod(number, 2)
        number, level = divmod(number, len(_GROWTHS)) if fits else (number, 0)
        rest, code = divmod(number, len(_MEMBERS))
        position, leaf = divmod(rest, len(self.names))
        return sentence(code, position, self.names[leaf], _GROWTHS[level])


class Places(NamedTuple):
    """What the entries of a problem are called in messages."""

    leaves: tuple["Leaf", ...] = ()
    offset: int = 0
    stride: int = 1


def fail_if(
    token: _Token,
    result: RESULTS,
    problem: "Chain | Places",
    prefix: IntScalar,
    leaf: IntScalar,
    growth: FloatScalar,
) -> _Token:
    """Raises the sentence of `result` at run time, unless it is `successful`.

    Works under `jit`. Of several samples in a `vmap`, the one whose first bad position
    is the last speaks. `growth` is the logarithm of what the chain amplifies errors by
    in a step.
    """
    names = tuple(leaf.name for leaf in problem.leaves) or ("",)
    sentences = _Sentences(names)
    position = problem.offset + problem.stride * prefix
    failed = result != RESULTS.successful
    number = sentences.number(result._value, position, leaf, growth)
    return eqx.branched_error_if(token, failed, jnp.where(failed, number, 0), sentences)


def raise_if(token: _Token, result: RESULTS) -> _Token:
    """As `fail_if`, for a problem whose entries have no order."""
    failed = result != RESULTS.successful
    number = jnp.where(failed, result._value, 0)
    sentences = [RESULTS[member] for member in _MEMBERS]
    return eqx.branched_error_if(token, failed, number, sentences)


def leaf_of(entry: IntScalar, leaves: tuple["Leaf", ...]) -> IntScalar:
    """The number of the leaf in which entry `entry` of a state lies."""
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))
    return jnp.searchsorted(jnp.array(ends or [1]), entry, side="right")
