"""Rootfinders for dense problems: each says how to move, and nothing else."""

from collections.abc import Callable
from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from ._check import checked_count, checked_tolerance
from ._custom_types import FloatScalar, IntScalar, State
from ._iteration import AbstractIteration
from ._linear import GMRES, linear_solve


class FixedPoint(AbstractIteration):
    """Damped iteration: `z' = z + (1 - damping) (f(z) - z)`. No memory.

    Converges where the spectral radius of `damping I + (1 - damping) J` is below one.
    """

    rtol: ArrayLike
    atol: ArrayLike
    damping: float = 0.0

    def init_memory(self, z):
        del z

    def advance(self, z, g, jvp, memory):
        del jvp
        return z + (1 - self.damping) * g, memory, 0


FixedPoint.__init__.__doc__ = """**Arguments:**

- `rtol`, `atol`: an iterate has converged when `max |f(z) - z| / (atol + rtol |z|)` is
    at most one.
- `damping`: how much of the old iterate is kept; negative values over-relax.
"""


class _AndersonMemory(eqx.Module):
    count: IntScalar
    last_z: State
    last_g: State
    # Differences of consecutive iterates and residuals, scaled so that those of the
    # residuals have unit length; the oldest is overwritten.
    dz: Float[Array, "m n"]
    dg: Float[Array, "m n"]
    gram: Float[Array, "m m"]


class Anderson(AbstractIteration):
    """Anderson acceleration: the next iterate from the last `history` differences.

    `z' = z + mixing g - (dZ + mixing dG)^T γ`, where `γ` minimises `|g - dG^T γ|`. The
    least-squares problem is solved by a Gram matrix of unit columns, to whose diagonal
    `ridge` is added: relative to the columns, so that the scale of `z` does not matter.

    ??? cite "Reference"

        Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J.
        Numer. Anal. 49, 2011, the unconstrained form.
    """

    rtol: ArrayLike
    atol: ArrayLike
    history: int = 10
    mixing: float = 1.0
    ridge: float | None = None

    def __check_init__(self):
        checked_count("history", self.history)
        checked_tolerance("ridge", self.ridge, None)

    def init_memory(self, z):
        m = min(self.history, z.size)
        none = jnp.zeros((m, z.size), z.dtype)
        gram = jnp.zeros((m, m), z.dtype)
        return _AndersonMemory(jnp.array(0), z, jnp.zeros_like(z), none, none, gram)

    def advance(self, z, g, jvp, memory):
        del jvp
        m = memory.gram.shape[0]
        dg = g - memory.last_g
        scale = _length(dg)
        # Nothing to learn from the first residual, nor from one that came again.
        learns = (memory.count > 0) & (scale > 0)
        unit = jnp.where(learns, 1 / jnp.where(learns, scale, 1), 0)
        slot = (memory.count - 1) % m
        new_dz = memory.dz.at[slot].set(unit * (z - memory.last_z))
        new_dg = memory.dg.at[slot].set(unit * dg)
        row = new_dg @ new_dg[slot]
        gram = memory.gram.at[slot].set(row).at[:, slot].set(row)
        ridge = jnp.finfo(z.dtype).eps ** 0.75 if self.ridge is None else self.ridge
        # A column that is missing has a zero Gram row: one on the diagonal instead.
        empty = jnp.diagonal(gram) == 0
        matrix = gram + jnp.diag(jnp.where(empty, 1, ridge).astype(gram.dtype))
        gamma = jnp.linalg.solve(matrix, new_dg @ g)
        new = z + self.mixing * g - gamma @ (new_dz + self.mixing * new_dg)
        plain = z + self.mixing * g
        new = jnp.where(jnp.isfinite(new).all(), new, plain)
        memory = _AndersonMemory(memory.count + 1, z, g, new_dz, new_dg, gram)
        return new, memory, 0


Anderson.__init__.__doc__ = """**Arguments:**

- `rtol`, `atol`: an iterate has converged when `max |f(z) - z| / (atol + rtol |z|)` is
    at most one.
- `history`: how many differences are kept, at most as many as the state has entries.
- `mixing`: how much of the predicted residual is added.
- `ridge`: regularisation relative to the squared length of a column; `eps^(3/4)` of the
    dtype by default.
"""


class _BroydenMemory(eqx.Module):
    count: IntScalar
    num_steps: IntScalar
    last_z: State
    last_g: State
    # H = -I + left^T right
    left: Float[Array, "m n"]
    right: Float[Array, "m n"]


class Broyden(AbstractIteration):
    """Broyden's method: an estimate of the inverse Jacobian, one rank more each step.

    `z' = z - H g` with `H` near the inverse of `d(f - z)/dz`, from `-I` on. The good
    update changes `H` least in the directions of the steps, the bad one in those of the
    residuals. With `memory` updates it starts again from `-I`: dropping the oldest one
    leaves the others, which were made with it, without meaning.

    ??? cite "Reference"

        Broyden, "A class of methods for solving nonlinear simultaneous equations",
        Math. Comp. 19, 1965.
    """

    rtol: ArrayLike
    atol: ArrayLike
    memory: int = 20
    kind: Literal["good", "bad"] = "good"

    def __check_init__(self):
        checked_count("memory", self.memory)
        if self.kind not in ("good", "bad"):
            raise ValueError(f'`kind` must be "good" or "bad", got {self.kind!r}.')

    def init_memory(self, z):
        none = jnp.zeros((self.memory, z.size), z.dtype)
        zero = jnp.zeros_like(z)
        return _BroydenMemory(jnp.array(0), jnp.array(0), zero, zero, none, none)

    def advance(self, z, g, jvp, memory):
        del jvp
        left, right = memory.left, memory.right
        # Rows from `count` on are not there, so forgetting them all costs nothing.
        count = jnp.where(memory.count == self.memory, 0, memory.count)
        dz, dg = z - memory.last_z, g - memory.last_g
        direction = _apply(right, left, count, dz) if self.kind == "good" else dg
        missing = dz - _apply(left, right, count, dg)
        slope = direction @ dg
        # An update along which the residual did not change would be rounding.
        small = jnp.finfo(z.dtype).eps * _length(direction) * _length(dg)
        good = (memory.num_steps > 0) & (jnp.abs(slope) > small)
        new = jnp.where(good, missing / jnp.where(good, slope, 1), 0)
        left = left.at[count].set(new)
        right = right.at[count].set(jnp.where(good, direction, 0))
        # An update that was left out is a row of zeros.
        count = count + (memory.num_steps > 0).astype(count.dtype)
        new = z - _apply(left, right, count, g)
        memory = _BroydenMemory(count, memory.num_steps + 1, z, g, left, right)
        return new, memory, 0

    def inverse_jacobian(self, memory: _BroydenMemory) -> Callable[[State], State]:
        """`v -> H v` after these updates."""
        return lambda v: _apply(memory.left, memory.right, memory.count, v)


Broyden.__init__.__doc__ = """**Arguments:**

- `rtol`, `atol`: an iterate has converged when `max |f(z) - z| / (atol + rtol |z|)` is
    at most one.
- `memory`: how many updates are kept before it starts again.
- `kind`: `"good"` or `"bad"`, as the two updates are called.
"""


def _apply(left, right, count, v):
    """`H v` with `H = -I + left^T right`; exchanged, `H^T v`."""
    there = jnp.arange(left.shape[0]) < count
    return -v + jnp.where(there, right @ v, 0) @ left


class Newton(AbstractIteration):
    """Newton's method: a linear solve with the Jacobian in every step.

    `z' = z + p` with `(I - J) p = f(z) - z`.
    """

    rtol: ArrayLike
    atol: ArrayLike
    linear_solver: lx.AbstractLinearSolver | GMRES = lx.AutoLinearSolver(
        well_posed=None
    )
    linearises: ClassVar[bool] = True

    def init_memory(self, z):
        del z

    def advance(self, z, g, jvp, memory):
        assert jvp is not None
        p, (count, _) = linear_solve(lambda v: v - jvp(v), g, self.linear_solver)
        return z + p, memory, count


Newton.__init__.__doc__ = """**Arguments:**

- `rtol`, `atol`: an iterate has converged when `max |f(z) - z| / (atol + rtol |z|)` is
    at most one.
- `linear_solver`: a Lineax solver, which may form the matrix, or a
    [`parafix.core.jax.GMRES`][], which does not.
"""


class _ForcingMemory(eqx.Module):
    forcing: FloatScalar
    size: FloatScalar


class NewtonKrylov(AbstractIteration):
    """Newton's method without a matrix: GMRES, only as exact as is of use.

    The linear system is solved to the relative tolerance `η = .9 (|g| / |g_last|)^α`,
    `α = (1 + sqrt(5)) / 2`, not below the one that the last step implies while that is
    large.

    ??? cite "Reference"

        Eisenstat and Walker, "Choosing the forcing terms in an inexact Newton method",
        SIAM J. Sci. Comput. 17, 1996, choice 2 and its safeguard.
    """

    rtol: ArrayLike
    atol: ArrayLike
    restart: int | None = None
    linearises: ClassVar[bool] = True

    def __check_init__(self):
        checked_count("restart", self.restart)

    def init_memory(self, z):
        half = jnp.array(0.5, z.dtype)
        return _ForcingMemory(half, jnp.zeros((), z.dtype))

    def advance(self, z, g, jvp, memory):
        assert jvp is not None
        power = (1 + 5**0.5) / 2
        size = lax.stop_gradient(_length(g))
        first = memory.size == 0
        fall = size / jnp.where(first, 1, memory.size)
        implied = 0.9 * memory.forcing**power
        forcing = 0.9 * fall**power
        forcing = jnp.where(implied > 0.1, jnp.maximum(forcing, implied), forcing)
        forcing = jnp.where(first, memory.forcing, forcing)
        forcing = jnp.clip(forcing, jnp.finfo(z.dtype).eps ** 0.75, 0.9)
        gmres = GMRES(forcing.astype(z.dtype), self.restart)
        p, (count, _) = linear_solve(lambda v: v - jvp(v), g, gmres)
        return z + p, _ForcingMemory(forcing.astype(z.dtype), size), count


NewtonKrylov.__init__.__doc__ = """**Arguments:**

- `rtol`, `atol`: an iterate has converged when `max |f(z) - z| / (atol + rtol |z|)` is
    at most one.
- `restart`: the dimension of the Krylov space, as in [`parafix.core.jax.GMRES`][].
"""


def _length(x):
    squared = jnp.sum(x * x)
    # The square root has no slope at zero.
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
