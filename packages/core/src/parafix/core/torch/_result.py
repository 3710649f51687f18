import enum
import itertools
from collections.abc import Sequence
from typing import Any, TYPE_CHECKING

import torch
from torch import Tensor

from .._sentences import sentence, SENTENCES
from ._custom_types import Codes


if TYPE_CHECKING:
    from ._chain import Leaf


class _Sentenced(enum.EnumMeta):
    """Lets an enumeration be asked for the sentence of one of its members."""

    def __getitem__(cls, name: Any) -> Any:
        # A name finds the member, as in every enumeration.
        return super().__getitem__(name) if isinstance(name, str) else sentence(name)


class RESULTS(enum.IntEnum, metaclass=_Sentenced):
    """How a solve ended. Each member stands for a sentence with cause and remedy.

    The JAX backend has the same members with the same codes. A member is its code, so
    members are compared with `==` to each other and to tensors of codes, one for each
    sample: `solution.result == RESULTS.successful` is a tensor of truth values.
    `RESULTS[member]` is the sentence, `RESULTS(code)` the member.
    """

    successful = 0
    max_steps_reached = 1
    nonfinite = 2
    diverged = 3
    stalled = 4
    ill_conditioned = 5
    not_causal = 6
    linear_solve_failed = 7


# The sentences have no codes of their own: theirs is the order.
assert list(RESULTS.__members__) == list(SENTENCES)


def raise_if(
    result: Codes,
    position: Tensor | None = None,
    leaf: Tensor | None = None,
    leaves: Sequence[str] = (),
    growth: Tensor | None = None,
) -> None:
    """Raises `RuntimeError` with the sentence of the first sample that failed.

    With the first bad position of that sample, the name of its leaf, and the factor by
    which it amplifies errors in a step, if they are given. Looks at values: on a GPU,
    the host waits for them.
    """
    failed = result != RESULTS.successful
    if not bool(failed.any()):
        return
    sample = int(torch.nonzero(failed.reshape(-1))[0])
    place = None if position is None else int(position.reshape(-1)[sample])
    name = ""
    if leaf is not None and leaves:
        name = leaves[int(leaf.reshape(-1)[sample])]
    factor = None if growth is None else float(growth.reshape(-1)[sample])
    text = sentence(int(result.reshape(-1)[sample]), place, name, factor)
    if result.ndim:
        number = int(failed.sum())
        text = f"{number} of {result.numel()} samples failed; sample {sample}: {text}"
    raise RuntimeError(text)


def leaf_of(entry: Tensor, leaves: Sequence["Leaf"]) -> Tensor:
    """The number of the leaf in which entry `entry` of each state lies."""
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))
    bounds = torch.tensor(ends or [1], device=entry.device)
    return torch.bucketize(entry, bounds, right=True).clamp(max=len(bounds) - 1)
