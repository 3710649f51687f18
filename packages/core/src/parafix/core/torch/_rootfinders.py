"""Rootfinders for dense problems: each says how to move, and nothing else."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ._check import checked_count, checked_tolerance
from ._iteration import AbstractIteration, may_overwrite
from ._linear import GMRES, linear_solve, LinearSolver, LU


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
        return z + (1 - self.damping) * g, memory, 0


class _AndersonMemory(NamedTuple):
    # The same for all samples, which start together.
    taken: int
    last_z: Tensor
    last_g: Tensor
    # `(B, m, n)`: differences of consecutive iterates and residuals, scaled so that
    # those of the residuals have unit length; the oldest is overwritten.
    dz: Tensor
    dg: Tensor
    # `(B, m, m)`
    gram: Tensor


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
        samples, size = z.shape
        m = min(self.history, size)
        dz, dg = (z.new_zeros(samples, m, size) for _ in range(2))
        gram = z.new_zeros(samples, m, m)
        return _AndersonMemory(0, z, torch.zeros_like(z), dz, dg, gram)

    def advance(self, z, g, jvp, memory):
        del jvp
        plain = z + self.mixing * g
        if memory.taken == 0:
            return plain, memory._replace(taken=1, last_z=z, last_g=g), 0
        m = memory.gram.shape[1]
        slot, filled = (memory.taken - 1) % m, min(memory.taken, m)
        change = g - memory.last_g
        scale = _length(change)
        # Nothing to learn from a residual that came again.
        unit = torch.where(scale > 0, 1 / torch.where(scale > 0, scale, 1), 0)
        column = unit[:, None] * change
        dz = _put(memory.dz, slot, unit[:, None] * (z - memory.last_z))
        dg = _put(memory.dg, slot, column)
        eps = torch.finfo(z.dtype).eps
        ridge = eps**0.75 if self.ridge is None else self.ridge
        # One on the diagonal also for a column of zeros, which then changes nothing.
        row = _put((dg * column[:, None]).sum(-1), slot, 1 + ridge)
        gram = _put(_put(memory.gram, slot, row).mT, slot, row).mT
        memory = _AndersonMemory(memory.taken + 1, z, g, dz, dg, gram)
        dz, dg = dz[:, :filled], dg[:, :filled]
        factor, info = torch.linalg.cholesky_ex(gram[:, :filled, :filled])
        gamma = torch.cholesky_solve((dg * g[:, None]).sum(-1)[..., None], factor)
        correction = dz + dg if self.mixing == 1 else dz + self.mixing * dg
        new = plain - (gamma * correction).sum(1)
        good = (info == 0) & torch.isfinite(new.detach()).all(1)
        return torch.where(good[:, None], new, plain), memory, 0


class _BroydenMemory(NamedTuple):
    # `(B,)`: updates differ from sample to sample.
    rank: Tensor
    num_steps: int
    last_z: Tensor
    last_g: Tensor
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
        count = torch.zeros(samples, dtype=torch.int64, device=z.device)
        zero = torch.zeros_like(z)
        return _BroydenMemory(count, 0, zero, zero, left, right)

    def advance(self, z, g, jvp, memory):
        del jvp
        if memory.num_steps == 0:
            return z + g, memory._replace(num_steps=1, last_z=z, last_g=g), 0
        # No sample has more updates than there were steps.
        some = min(memory.num_steps, self.memory)
        left, right = memory.left, memory.right
        # Rows from `count` on are not there, so forgetting them all costs nothing.
        count = torch.where(memory.rank == self.memory, 0, memory.rank)
        dz, dg = z - memory.last_z, g - memory.last_g
        good = self.kind == "good"
        direction = _apply(right, left, count, dz, some) if good else dg
        missing = dz - _apply(left, right, count, dg, some)
        slope = (direction * dg).sum(-1)
        # An update along which the residual did not change would be rounding.
        small = torch.finfo(z.dtype).eps * _length(direction) * _length(dg)
        good = slope.abs() > small
        slope = torch.where(good, slope, 1)
        new = torch.where(good[:, None], missing / slope[:, None], 0)
        left = _put_each(left, count, new)
        right = _put_each(right, count, direction)
        count = count + good
        new = z - _apply(left, right, count, g, some)
        memory = _BroydenMemory(count, memory.num_steps + 1, z, g, left, right)
        return new, memory, 0

    def inverse_jacobian(
        self, memory: _BroydenMemory, transposed: bool
    ) -> Callable[[Tensor], Tensor]:
        """`v -> H v` after these updates, or `v -> H^T v`."""
        left, right = memory.left, memory.right
        if transposed:
            left, right = right, left
        return lambda v: _apply(left, right, memory.rank, v, left.shape[1])


def _apply(left, right, count, v, some):
    """`H v`, `H = -I + left^T right` with `some` rows at most; exchanged, `H^T v`."""
    left, right = left[:, :some], right[:, :some]
    there = torch.arange(some, device=v.device) < count[:, None]
    weights = torch.where(there, (right * v[:, None]).sum(-1), 0)
    return (weights[..., None] * left).sum(1) - v


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
        size = _length(g.detach())
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


def _length(x):
    squared = (x * x).sum(-1)
    if may_overwrite():
        return squared.sqrt()
    # The square root has no slope at zero.
    return torch.where(squared > 0, torch.where(squared > 0, squared, 1).sqrt(), 0)


def _put(buffer, slot, value):
    """`buffer` with `value` in row `slot` of every sample."""
    if may_overwrite():
        buffer[:, slot] = value
        return buffer
    index = torch.arange(buffer.shape[1], device=buffer.device) == slot
    index = index.reshape(1, -1, *[1] * (buffer.ndim - 2))
    if isinstance(value, Tensor):
        value = value[:, None]
    return torch.where(index, value, buffer)


def _put_each(buffer, slots, value):
    """`buffer` with `value` in a row of its own for every sample."""
    index = slots[:, None, None].expand(-1, 1, buffer.shape[2])
    if may_overwrite():
        return buffer.scatter_(1, index, value[:, None])
    return buffer.scatter(1, index, value[:, None])
