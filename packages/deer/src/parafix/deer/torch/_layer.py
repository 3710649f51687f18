"""One layer of a recurrent network in one direction, solved for all times at once."""

import contextlib
import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch._C._functorch import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    maybe_get_bdim,
)

from parafix.core.torch import Chain, Leaf, RESULTS, Solution, solve_chain

from ._cells import AbstractCell
from ._sequences import Sequences


@dataclasses.dataclass(frozen=True, eq=False)
class LayerInfo:
    """How one layer of a module went in one direction.

    **Attributes:**

    - `layer`: its number, from 0.
    - `reverse`: whether it runs from the end to the start.
    - `solver`: what ran: a name, or the solver that the module was given.
    - `reason`: why, in words, where `solver="auto"` has chosen; empty otherwise.
    - `solution`: a [`parafix.core.torch.Solution`][] without its `value`, every other
        entry with the samples in the order of the inputs; `None` where PyTorch's own
        kernel ran, of which nothing is known.
    """

    layer: int
    reverse: bool
    solver: Any
    reason: str = ""
    solution: Solution[None] | None = None

    @property
    def result(self) -> Tensor | None:
        """The code of a [`parafix.core.torch.RESULTS`][] member for each sample."""
        return None if self.solution is None else self.solution.result

    @property
    def stats(self) -> dict[str, Tensor]:
        """`num_steps`, `residual`, `converged_prefix`, ...; of each sample one."""
        return {} if self.solution is None else self.solution.stats

    @property
    def successful(self) -> bool:
        """Whether no sample is known to have failed. On a GPU, the host waits."""
        result = self.result
        return result is None or not bool((result != RESULTS.successful).any())

    def message(self, sample: int | None = None) -> str:
        """The sentence of one sample, or of the first that failed; empty if none."""
        if self.solution is None or self.successful:
            return ""
        if sample is None and self.solution.result.ndim:
            failed = self.solution.result != RESULTS.successful
            sample = int(failed.nonzero()[0])
        return self.solution.message(sample)


def solve_layer(
    cell: AbstractCell,
    inputs: Float[Tensor, "*rows i"],
    init: Float[Tensor, "B n"],
    sequences: Sequences,
    present: Bool[Tensor, "T B 1"] | None,
    reverse: bool,
    options: dict[str, Any],
) -> tuple[Float[Tensor, "T B n"], Float[Tensor, "B n"], Solution[None]]:
    """The states at all times in the order of the inputs, the last, and how it went.

    **Arguments:**

    - `cell`: what runs.
    - `inputs`: as layers exchange them, see `Sequences`.
    - `init`: the state to start from, at the end if `reverse`.
    - `sequences`, `present`: the layout, and what in it is no padding.
    - `reverse`: whether to go through time backwards.
    - `options`: those of `solve_chain`.
    """
    gates = sequences.spread(cell.gates(inputs)).to(init.dtype)
    runs: AbstractCell | _Padded = cell
    xs: Any = gates.flip(0) if reverse else gates
    if present is not None:
        runs, xs = _Padded(cell), (xs, present.flip(0) if reverse else present)
    length = sequences.length
    eps = torch.finfo(init.dtype).eps
    problem = Chain(
        runs.step,
        init,
        xs,
        length,
        offset=length - 1 if reverse else 0,
        stride=-1 if reverse else 1,
        leaves=tuple(Leaf(name, size, eps) for name, size in cell.sizes.items()),
        broadcasts=True,
        linearised=runs.linearised,
    )
    # What is rounded in a recurrence is carried on: no autocast in here.
    with _exactly(init.device):
        solution = solve_chain(problem, growth=False, **options)
    states = solution.value
    last = states[-1]
    return states.flip(0) if reverse else states, last, _about(solution, sequences)


@dataclasses.dataclass(frozen=True, eq=False)
class _Padded:
    """`cell` where its inputs are real, and rest where they are padding.

    A state that is carried along, with the identity for its Jacobian, leaves at the end
    of the padding as it came, in both directions of time.
    """

    cell: AbstractCell

    def step(self, z, x):
        x, present = x
        return torch.where(present, self.cell.step(z, x), z)

    def linearised(self, z, x):
        x, present = x
        f, blocks = self.cell.linearised(z, x)
        identity = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        blocks = torch.where(present.unsqueeze(-1), blocks, identity)
        return torch.where(present, f, z), blocks


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a device."""
    kind = device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _exactly(device):
    if autocasts(device):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _about(solution: Solution[Any], sequences: Sequences) -> Solution[None]:
    """What is known of a solve, without the states: they would be kept alive."""

    def kept(x):
        if isinstance(x, Tensor):
            x = _plain(sequences.of_samples(x) if x.ndim else x)
        return x

    return Solution(
        None,
        result=kept(solution.result),
        stats={name: kept(x) for name, x in solution.stats.items()},
        position=kept(solution.position),
        leaf=kept(solution.leaf),
        leaves=solution.leaves,
    )


def _plain(x):
    """Without the wrappers of `torch.func`, which end with the transforms.

    Of a `vmap` its members are left, as the first axis.
    """
    while is_functorch_wrapped_tensor(x):
        batched = is_batchedtensor(x)
        place = maybe_get_bdim(x) if batched else 0
        x = get_unwrapped(x)
        x = x.movedim(place, 0) if batched else x
    return x.detach()
