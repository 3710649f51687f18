"""The differences that Anderson acceleration keeps, and least squares with them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._iteration import may_overwrite
from ._rows import combined, divisor, put, seen
from ._watch import extremes, surely_finite


class _Place(NamedTuple):
    """Where what belongs to one slot is written."""

    # `(2, B, 1, n)`, and its halves `(B, n)` and `(B, 1, n)`.
    both: Tensor
    move: Tensor
    change: Tensor
    # `(B, m)`, and what these two share, `(B,)`.
    row: Tensor
    column: Tensor
    diagonal: Tensor


class Secants(NamedTuple):
    """Differences of consecutive plain steps and of their residuals.

    Scaled so that those of the residuals have unit length.

    **Attributes:**

    - `moves`, `changes`: shape `(B, m, n)`, of the steps and of the residuals.
    - `gram`: shape `(B, m, m)`, the products of `changes`; to the diagonal the ridge is
        added.
    """

    moves: Tensor
    changes: Tensor
    gram: Tensor
    # By slot, and memory for right-hand sides, `(B, m, 1)` and `(B, m)`; empty where
    # nothing may be overwritten.
    places: Sequence[_Place]
    right: Sequence[Tensor]

    @classmethod
    def none(cls, z: Tensor, number: int) -> "Secants":
        """Of states like `z`, `(B, n)`: none yet, and room for so many."""
        samples, size = z.shape
        both = z.new_zeros(2, samples, number, size)
        moves, changes = both.unbind(0)
        gram = z.new_zeros(samples, number, number)
        diagonal = gram.diagonal(dim1=1, dim2=2)
        # A column that is missing has a one on the diagonal, and changes nothing.
        diagonal.fill_(1)
        if not may_overwrite():
            return cls(moves, changes, gram, (), ())
        places = map(
            _Place,
            both.unsqueeze(3).unbind(2),
            moves.unbind(1),
            changes.unsqueeze(2).unbind(1),
            gram.unbind(1),
            gram.unbind(2),
            diagonal.unbind(1),
        )
        right = z.new_empty(samples, number, 1)
        return cls(moves, changes, gram, list(places), (right, right.squeeze(2)))

    def put(
        self,
        slot: int,
        plain: tuple[Tensor, Tensor],
        g: tuple[Tensor, Tensor],
        ridge: float,
    ) -> "Secants":
        """With the difference of two plain steps, `(B, n)`, in the place of another.

        `g` are their residuals, `(B, 1, n)`.
        """
        if not self.places:
            return self._copy(slot, plain[0] - plain[1], g[0] - g[1], ridge)
        place = self.places[slot]
        torch.sub(*plain, out=place.move)
        torch.sub(*g, out=place.change)
        place.both.div_(divisor(place.change, True))
        torch.linalg.vecdot(self.changes, place.change, out=place.row)
        place.column.copy_(place.row)
        place.diagonal.fill_(1 + ridge)
        return self

    def _copy(self, slot, move, change, ridge):
        # Nothing to learn from a residual that came again: then this is infinite, and
        # the column zero.
        change = change.squeeze(1)
        scale = divisor(change, False)
        moves = put(self.moves, slot, move / scale, False)
        change = change / scale
        changes = put(self.changes, slot, change, False)
        products = torch.linalg.vecdot(changes, change.unsqueeze(1))
        row = put(products, slot, 1 + ridge, False)
        gram = put(put(self.gram, slot, row, False).mT, slot, row, False)
        return Secants(moves, changes, gram, (), ())

    def accelerated(self, plain: Tensor, g: Tensor) -> Tensor:
        """`plain - moves^T γ`, where `γ` minimises `|g - changes^T γ|`: `(B, n)`.

        `plain` itself for samples for which that is not finite.

        **Arguments:**

        - `plain`: shape `(B, n)`, the plain step.
        - `g`: shape `(B, 1, n)`, its residual.
        """
        if self.right:
            right, flat = self.right
            torch.linalg.vecdot(self.changes, g, out=flat)
        else:
            right = torch.linalg.vecdot(self.changes, g).unsqueeze(2)
        factor, info = torch.linalg.cholesky_ex(self.gram)
        gamma = torch.cholesky_solve(right, factor)
        new = plain - combined(gamma, self.moves)
        if seen(new, bool(self.right)):
            # Counts of the first minor that is not positive.
            _, failed = extremes(info)
            if not failed and surely_finite(new):
                return new
        good = (info == 0) & torch.isfinite(new.detach()).all(1)
        return torch.where(good[:, None], new, plain)
