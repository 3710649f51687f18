import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Any, TYPE_CHECKING, TypeVar

import equinox as eqx
import jax.numpy as jnp

from ._custom_types import IntScalar


if TYPE_CHECKING:
    from ._chain import Chain, Leaf

_Token = TypeVar("_Token")


class RESULTS(eqx.Enumeration):
    """How a solve ended. Each member is a sentence that names cause and remedy.

    The PyTorch backend has the same members with the same codes. Members are compared
    with `==`, traced or not; `RESULTS[item]` is the sentence.
    """

    successful = "Every entry is finite and within tolerance."
    max_steps_reached = (
        "The solver used up `max_steps` before every entry was within tolerance. "
        "Raise `max_steps` or the tolerances, start closer to the solution, or take "
        'another solver (`solver="sequential"` always ends, where there is a sequence).'
    )
    nonfinite = (
        "The function returned NaN or infinity; in a sequence, at a point that is "
        "itself right, so that the sequential program returns it too. Look at the "
        "function and at its inputs there."
    )
    diverged = (
        "The iterates grew without bound. Start closer to the solution, use damping, "
        'or take another solver (`solver="newton"`, or one with a trust region).'
    )
    stalled = (
        "The iterates stopped moving before the solution was within tolerance. Use a "
        'solver with derivatives (`solver="deer"` for a sequence, `solver="newton"` '
        "for a dense problem); if the tolerances are below what this dtype can reach, "
        "raise them or use a wider dtype."
    )
    ill_conditioned = (
        "The equations hold to within tolerance, but the recurrence is unstable: it "
        "amplifies rounding until the digits that were asked for are lost, so another "
        "order of the same operations gives another answer. Shorten the sequence, use "
        "a wider dtype, make the recurrence contractive, or solve sequentially "
        '(`solver="sequential"`).'
    )
    not_causal = (
        "Entries depend on themselves or on later ones (or the function is not "
        "deterministic), so there is no sequential program to reproduce. Check masks "
        "and dropout, or solve the problem as a dense one."
    )
    linear_solve_failed = (
        "The linear solve inside a step or inside the gradient did not reach its "
        "tolerance. Use another linear solver, or loosen its tolerance."
    )


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


def sentence(code: int, position: int | None, leaf: str) -> str:
    """The sentence of a failure, with its place if there is one."""
    if position is None:
        return RESULTS[_MEMBERS[code]]
    where = f" First bad position: {position}"
    where += f", leaf {leaf}." if leaf else "."
    return RESULTS[_MEMBERS[code]] + where


@dataclasses.dataclass(frozen=True)
class _Sentences(Sequence[str]):
    """The sentence of every (code, position, leaf), made when it is asked for.

    Errors under `jit` take a message by its number, and positions are known only then.
    """

    names: tuple[str, ...]

    def number(self, code, position, leaf):
        code, leaf = code.astype(position.dtype), leaf.astype(position.dtype)
        return (position * len(self.names) + leaf) * len(_MEMBERS) + code

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: Any) -> str:  # No slice is taken.
        rest, code = divmod(number, len(_MEMBERS))
        position, leaf = divmod(rest, len(self.names))
        return sentence(code, position, self.names[leaf])


def fail_if(
    token: _Token, result: RESULTS, problem: "Chain", prefix: IntScalar, leaf: IntScalar
) -> _Token:
    """Raises the sentence of `result` at run time, unless it is `successful`.

    Works under `jit`. Of several samples in a `vmap`, the one whose first bad position
    is the last speaks.
    """
    sentences = _Sentences(tuple(leaf.name for leaf in problem.leaves) or ("",))
    position = problem.offset + problem.stride * prefix
    failed = result != RESULTS.successful
    number = sentences.number(result._value, position, leaf)
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
