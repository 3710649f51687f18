"""Rootfinders for dense problems: each says how to move, and nothing else."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ._check import checked_count, checked_tolerance
from ._iteration import AbstractIteration, may_overwrite
from ._linear import GMRES, linear_solve, LinearSolver, LU
from ._rows import all_apart, combined, divisor, length, products, put, seen
from ._secants import Secants


@dataclasses.dataclass(frozen=True)
class FixedPoint(AbstractIteration):
    """Damped iteration: `z' = z + (1 - damping) (f(z) - z)`. No memory.

    Converges where the spectral radius of `damping I + (1 - damping) J` is below one.

    **Arguments:**

    - `rtol`, `atol`: an iterate has converged when `max |f(z) - z| / (atol + rtol |z|)`
        is at most one.
    - `damping`: how much of the old iterate is kept; negative values over-relax.
    """

    damping: float = 0.0

    def init_memory(self, z):
        del z

    def advance(self, z, g, jvp, memory):
        del jvp
        return torch.add(z, g, alpha=1 - self.damping), memory, 0


class _AndersonMemory(NamedTuple):
    # The same for all samples, which start together.
    taken: int
    # `(B, n)`: the last plain step `z + mixing g`.
    plain: Tensor
    # `(B, 1, n)`
    g: Tensor
    # The oldest is overwritten.
    secants: Secants


@dataclasses.dataclass(frozen=True)
class Anderson(AbstractIteration):
    """Anderson acceleration: the next iterate from the last `history` differences.

    `z' = z + mixing g - (dZ + mixing dG)^T γ`, where `γ` minimises `|g - dG^T γ|`. The
    least-squares problem is solved by a Gram matrix of unit columns, to whose diagonal
    `ridge` is added: relative to the columns, so that the scale of `z` does not matter.

    ??? cite "Reference"

        Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J.
        Numer. Anal. 49, 2011, the unconstrained form.

    **Arguments:**

    - `rtol`, `atol`: an iterate has converged when `max |f(z) - z| / (atol + rtol |z|)`
        is at most one.
    - `history`: how many differences are kept, at most as many as the state has
        entries.
    - `mixing`: how much of the predicted residual is added.
    - `ridge`: regularisation relative to the squared length of a column; `eps^(3/4)` of
        the dtype by default.
    """

    history: int = 10
    mixing: float = 1.0
    ridge: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count("history", self.history)
        checked_tolerance("ridge", self.ridge, None)

    def init_memory(self, z):
        secants = Secants.none(z, min(self.history, z.shape[1]))
        return _AndersonMemory(0, z, z.unsqueeze(1), secants)

    def advance(self, z, g, jvp, memory):
        del jvp
        plain = new = torch.add(z, g, alpha=self.mixing)
        g = g.unsqueeze(1)
        taken, last_plain, last_g, secants = memory
        if taken:
            eps = torch.finfo(z.dtype).eps
            ridge = eps**0.75 if self.ridge is None else self.ridge
            slot = (taken - 1) % secants.gram.shape[1]
            secants = secants.put(slot, (plain, last_plain), (g, last_g), ridge)
            new = secants.accelerated(plain, g)
        return new, _AndersonMemory(taken + 1, plain, g, secants), 0


class _BroydenMemory(NamedTuple):
    # The same for all samples, which start together.
    rank: int
    num_steps: int
    last_z: Tensor
    last_g: Tensor
    # `H g` of the last step, with what is still known of `H`.
    last_h: Tensor
    # `(B, m, n)`: H = -I + left^T right
    left: Tensor
    right: Tensor


@dataclasses.dataclass(frozen=True)
class Broyden(AbstractIteration):
    """Broyden's method: an estimate of the inverse Jacobian, one rank more each step.

    `z' = z - H g` with `H` near the inverse of `d(f - z)/dz`, from `-I` on. The good
    update changes `H` least in the directions of the steps, the bad one in those of the
    residuals. With `memory` updates it starts again from `-I`: dropping the oldest one
    leaves the others, which were made with it, without meaning.

    ??? cite "Reference"

        Broyden, "A class of methods for solving nonlinear simultaneous equations",
        Math. Comp. 19, 1965.

    **Arguments:**

    - `rtol`, `atol`: an iterate has converged when `max |f(z) - z| / (atol + rtol |z|)`
        is at most one.
    - `memory`: how many updates are kept before it starts again.
    - `kind`: `"good"` or `"bad"`, as the two updates are called.
    """

    memory: int = 20
    kind: Literal["good", "bad"] = "good"

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count("memory", self.memory)
        if self.kind not in ("good", "bad"):
            raise ValueError(f'`kind` must be "good" or "bad", got {self.kind!r}.')

    def init_memory(self, z):
        samples, size = z.shape
        left, right = (z.new_zeros(samples, self.memory, size) for _ in range(2))
        zero = torch.zeros_like(z)
        return _BroydenMemory(0, 0, zero, zero, zero, left, right)

    def advance(self, z, g, jvp, memory):
        del jvp
        if memory.num_steps == 0:
            new = memory._replace(num_steps=1, last_z=z, last_g=g, last_h=-g)
            return z + g, new, 0
        rank, last_h = memory.rank, memory.last_h
        if rank == self.memory:
            rank, last_h = 0, -memory.last_g
        inplace = may_overwrite()
        left, right = memory.left, memory.right
        dz, dg = z - memory.last_z, g - memory.last_g
        h = _apply(left, right, rank, g)
        direction = dg if self.kind == "bad" else _apply(right, left, rank, dz)
        # `dz - H dg`
        missing = dz - (h - last_h)
        slope = (direction * dg).sum(1, keepdim=True)
        eps = torch.finfo(z.dtype).eps
        if seen(slope, inplace) and all_apart(slope, direction, dg, eps):
            new = missing / slope
        else:
            # An update along which the residual did not change would be rounding: its
            # row is zero.
            cosine = slope / (divisor(direction, inplace) * divisor(dg, inplace))
            good = cosine.abs() > eps
            new = torch.where(good, missing / torch.where(good, slope, 1), 0)
            direction = torch.where(good, direction, 0)
        left = put(left, rank, new, inplace)
        right = put(right, rank, direction, inplace)
        h = torch.addcmul(h, new, (direction * g).sum(1, keepdim=True))
        steps = memory.num_steps + 1
        return z - h, _BroydenMemory(rank + 1, steps, z, g, h, left, right), 0

    def inverse_jacobian(
        self, memory: _BroydenMemory, transposed: bool
    ) -> Callable[[Tensor], Tensor]:
        """`v -> H v` after these updates, or `v -> H^T v`."""
        left, right = memory.left, memory.right
        if transposed:
            left, right = right, left
        return lambda v: _apply(left, right, memory.rank, v)


def _apply(left, right, rank, v):
    """`H v`, `H = -I + left^T right` with `rank` rows; exchanged, `H^T v`."""
    if rank == 0:
        return -v
    weights = products(right.narrow(1, 0, rank), v)
    return combined(weights.unsqueeze(-1), left.narrow(1, 0, rank)) - v


@dataclasses.dataclass(frozen=True)
class Newton(AbstractIteration):
    """Newton's method: a linear solve with the Jacobian in every step.

    `z' = z + p` with `(I - J) p = f(z) - z`.

    **Arguments:**

    - `rtol`, `atol`: an iterate has converged when `max |f(z) - z| / (atol + rtol |z|)`
        is at most one.
    - `linear_solver`: a [`parafix.core.torch.LU`][], which forms the matrix of every
        sample, or a [`parafix.core.torch.GMRES`][], which does not.
    """

    linear_solver: LinearSolver = LU()
    linearises: ClassVar[bool] = True

    def init_memory(self, z):
        del z

    def advance(self, z, g, jvp, memory):
        assert jvp is not None
        p, count, _ = linear_solve(jvp, g, self.linear_solver)
        return z + p, memory, count


class _ForcingMemory(NamedTuple):
    # Both `(B,)`.
    forcing: Tensor
    size: Tensor


@dataclasses.dataclass(frozen=True)
class NewtonKrylov(AbstractIteration):
    """Newton's method without a matrix: GMRES, only as exact as is of use.

    The linear system is solved to the relative tolerance `η = .9 (|g| / |g_last|)^α`,
    `α = (1 + sqrt(5)) / 2`, not below the one that the last step implies while that is
    large.

    ??? cite "Reference"

        Eisenstat and Walker, "Choosing the forcing terms in an inexact Newton method",
        SIAM J. Sci. Comput. 17, 1996, choice 2 and its safeguard.

    **Arguments:**

    - `rtol`, `atol`: an iterate has converged when `max |f(z) - z| / (atol + rtol |z|)`
        is at most one.
    - `restart`: the dimension of the Krylov space, as in
        [`parafix.core.torch.GMRES`][].
    """

    restart: int | None = None
    linearises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_count("restart", self.restart)

    def init_memory(self, z):
        half = torch.full(z.shape[:1], 0.5, dtype=z.dtype, device=z.device)
        return _ForcingMemory(half, torch.zeros_like(half))

    def advance(self, z, g, jvp, memory):
        assert jvp is not None
        power = (1 + 5**0.5) / 2
        size = length(g.detach())
        first = memory.size == 0
        fall = size / torch.where(first, 1, memory.size)
        implied = 0.9 * memory.forcing**power
        forcing = 0.9 * fall**power
        forcing = torch.where(implied > 0.1, torch.maximum(forcing, implied), forcing)
        forcing = torch.where(first, memory.forcing, forcing)
        forcing = forcing.clamp(max(torch.finfo(z.dtype).eps, jvp.eps) ** 0.75, 0.9)
        gmres = GMRES(restart=self.restart)
        p, count, _ = linear_solve(jvp, g, gmres, rtol=forcing)
        return z + p, _ForcingMemory(forcing, size), count
