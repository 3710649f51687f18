import dataclasses
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from parafix.core.torch import AbstractCausalSweep, checked_count, checked_tolerance

from ._entries import flattened, unflattened


class _History(NamedTuple):
    """What the last evaluations have shown, newest last; zeros where there is none."""

    # `(B, N, n)`, NaN where an image was not finite, and before the first evaluation.
    last_z: Tensor
    last_g: Tensor
    # `(m, B, N, n)`
    moves: Tensor
    changes: Tensor


@dataclasses.dataclass(frozen=True)
class TriangularAnderson(AbstractCausalSweep):
    """Anderson acceleration that looks back only: coefficients of their own by entry.

    With the residuals `g = f(z) - z`, and the differences of the last iterates and
    residuals as the columns of `dZ` and `dG`, entry `i` of the next iterate is
    `f_i - (dZ + dG)_i γ_i`, where `γ_i` minimises `|g - dG γ|` over entries from the
    first that is not final to `i`. So an entry never depends on those after it, and
    normal equations for all entries are sums along them. An entry takes the plain step
    `f_i` where the residual up to there has grown, where it is within tolerance, so
    that the last bits settle, and where what comes out is not finite.

    For floats. It takes fewer sweeps than `"jacobi"` where an entry depends on many
    before it, on each by a little: an ODE in Picard's form, a sampler of diffusion
    unrolled. Where all goes by way of the entry just before, it takes as many.

    ??? cite "Reference"

        Tang, Tang, Luo, Wang and Chang, "Accelerating parallel sampling of diffusion
        models", ICML 2024: triangular Anderson acceleration.

    **Arguments:**

    - `rtol`, `atol`: entries are within tolerance if two evaluations differ by at most
        `atol + rtol |z|`.
    - `history`: how many differences are kept.
    - `ridge`: regularisation relative to the squared length of a column; `sqrt(eps)` of
        the dtype by default.
    """

    history: int = 3
    ridge: float | None = None
    for_floats_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count("history", self.history)
        checked_tolerance("ridge", self.ridge, None)

    def init_memory(self, z):
        z = flattened(z)
        none = z.new_zeros(self.history, *z.shape)
        unknown = torch.full_like(z, torch.nan)
        return _History(unknown, unknown, none, none)

    def propose(self, z, f, prefix, memory):
        plain, like = flattened(f), f
        z = flattened(z)
        finite = torch.isfinite(plain).all(2, keepdim=True)
        g = torch.where(finite, plain - z, torch.nan)
        move, change = z - memory.last_z, g - memory.last_g
        known = torch.isfinite(change)
        moves, changes = (
            torch.cat([old[1:], torch.where(known, new, 0)[None]])
            for old, new in ((memory.moves, move), (memory.changes, change))
        )
        index = torch.arange(z.shape[1], device=z.device)
        free = (index >= prefix[:, None])[:, :, None]
        now, last = (
            torch.where(free & torch.isfinite(x), x, 0) for x in (g, memory.last_g)
        )
        columns = torch.where(free, changes, 0)
        # Sums over the entries before, and the one itself.
        gram = (columns[:, None] * columns).sum(4).cumsum(3)
        right = (columns * now).sum(3).cumsum(2)
        step = self._combined(gram, right, moves + changes)
        sizes = [(x * x).sum(2).cumsum(1) for x in (now, last)]
        grown = ~(sizes[0] <= sizes[1])[:, :, None]
        settled = now.abs() <= self.atol + self.rtol * z.abs()
        settled = settled.all(2, keepdim=True)
        new = plain - step
        bad = grown | settled | ~torch.isfinite(new).all(2, keepdim=True)
        memory = _History(z, g, moves, changes)
        return unflattened(torch.where(bad, plain, new), like), memory

    def _combined(self, gram, right, columns):
        """`columns γ`, of columns `(m, B, N, n)`: `(B, N, n)`."""
        squared = gram.diagonal().movedim(-1, 0)
        # In units of the columns. One that is missing is zero, and changes nothing.
        unit = torch.where(squared > 0, squared.sqrt(), torch.inf)
        matrix = (gram / unit[:, None] / unit).movedim((0, 1), (-2, -1))
        eps = torch.finfo(gram.dtype).eps
        ridge = eps**0.5 if self.ridge is None else self.ridge
        diagonal = torch.where(squared > 0, ridge, 1 + ridge).to(gram.dtype)
        matrix = matrix + torch.diag_embed(diagonal.movedim(0, -1))
        factor, info = torch.linalg.cholesky_ex(matrix)
        right = (right / unit).movedim(0, -1)[..., None]
        gamma = torch.cholesky_solve(right, factor).squeeze(-1).movedim(-1, 0)
        # Which the caller sees.
        gamma = torch.where(info == 0, gamma, torch.nan)
        return ((gamma / unit)[..., None] * columns).sum(0)
