"""The layouts in which the layers of `torch.nn` take sequences."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """How the sequences of one call lie, and how to get them into `(T, B, ...)`.

    Between layers they stay as they came, time first: `(T, B, i)`, or one below the
    other as in a `PackedSequence`, `(N, i)`. So no product is taken of padding, and
    dropout draws the numbers that it draws in `torch.nn`.

    - `length`, `batch`: `T` and `B`.
    - `single`: whether there is no axis for the batch outside.
    - `batch_first`: as the option of the module.
    - `packed`: the sequences themselves where they came packed, longest first.
    - `rows`: where in `T * B` places each of the `N` entries goes.
    """

    length: int
    batch: int
    single: bool
    batch_first: bool
    packed: PackedSequence | None = None
    rows: Tensor | None = None

    @classmethod
    def of(cls, given: Tensor | PackedSequence, batch_first: bool) -> "Sequences":
        if isinstance(given, PackedSequence):
            batch = int(given.batch_sizes[0])
            sizes = given.batch_sizes.unsqueeze(1)
            # Packed, the times follow each other, and within each the sequences.
            rows = (torch.arange(batch) < sizes).reshape(-1).nonzero().squeeze(1)
            length = len(given.batch_sizes)
            rows = rows.to(given.data.device)
            return cls(length, batch, False, batch_first, given, rows)
        if given.ndim == 2:
            return cls(given.shape[0], 1, True, batch_first)
        length, batch = given.shape[:2]
        if batch_first:
            length, batch = batch, length
        return cls(length, batch, False, batch_first)

    def enter(self, given: Tensor | PackedSequence) -> Tensor:
        """The inputs, time first: `(T, B, i)` or `(N, i)`."""
        if isinstance(given, PackedSequence):
            return given.data
        if self.single:
            return given.unsqueeze(1)
        return given.transpose(0, 1) if self.batch_first else given

    def leave(self, outputs: Tensor) -> Any:
        """Outputs in the layout in which the inputs came."""
        if self.packed is not None:
            return PackedSequence(outputs, *self.packed[1:])
        if self.single:
            return outputs.squeeze(1)
        return outputs.transpose(0, 1) if self.batch_first else outputs

    def enter_state(self, state: Tensor) -> Tensor:
        """An initial state as given, to `(layers, B, n)` in the order of the inputs."""
        if self.single:
            return state.unsqueeze(1)
        order = None if self.packed is None else self.packed.sorted_indices
        return state if order is None else state.index_select(1, order)

    def leave_state(self, state: Tensor) -> Tensor:
        return self.of_samples(state, 1)

    def of_samples(self, x: Tensor, axis: int = 0) -> Tensor:
        """What has the samples on an axis, in the order in which they were given."""
        if self.single:
            return x.squeeze(axis)
        order = None if self.packed is None else self.packed.unsorted_indices
        return x if order is None else x.index_select(axis, order)

    def spread(self, x: Tensor) -> Tensor:
        """`(T, B, i)` from what layers exchange, with zeros for padding."""
        if self.rows is None:
            return x
        places = x.new_zeros(self.length * self.batch, x.shape[-1])
        return places.index_copy(0, self.rows, x).reshape(self.length, self.batch, -1)

    def gather(self, x: Tensor) -> Tensor:
        """The reverse of `spread`."""
        return x if self.rows is None else x.flatten(0, 1).index_select(0, self.rows)

    def present(self) -> Tensor | None:
        """`(T, B, 1)`: what is no padding; `None` where there is none."""
        if self.rows is None or len(self.rows) == self.length * self.batch:
            return None
        return self.spread(self.rows.new_ones(len(self.rows), 1, dtype=torch.bool))
