from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.scipy.linalg
from jaxtyping import Array, ArrayLike, Float

from parafix.core.jax import AbstractCausalSweep, checked_count, checked_tolerance

from ._entries import flattened, unflattened


class _History(eqx.Module):
    """What the last evaluations have shown, newest last; zeros where there is none."""

    # NaN where an image was not finite, and before the first evaluation.
    last_z: Float[Array, "N n"]
    last_g: Float[Array, "N n"]
    moves: Float[Array, "m N n"]
    changes: Float[Array, "m N n"]


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
    """

    rtol: ArrayLike
    atol: ArrayLike
    history: int = 3
    ridge: float | None = None
    for_floats_only: ClassVar[bool] = True

    def __check_init__(self):
        checked_count("history", self.history)
        checked_tolerance("ridge", self.ridge, None)

    def init_memory(self, z):
        z = flattened(z)
        unknown, none = jnp.full_like(z, jnp.nan), jnp.zeros((self.history, *z.shape))
        none = none.astype(z.dtype)
        return _History(unknown, unknown, none, none)

    def propose(self, z, f, prefix, memory):
        plain, like = flattened(f), f
        z = flattened(z)
        g = jnp.where(jnp.isfinite(plain).all(1, keepdims=True), plain - z, jnp.nan)
        move, change = z - memory.last_z, g - memory.last_g
        known = jnp.isfinite(change)
        moves, changes = (
            jnp.concatenate([old[1:], jnp.where(known, new, 0)[None]])
            for old, new in ((memory.moves, move), (memory.changes, change))
        )
        free = (jnp.arange(len(z)) >= prefix)[:, None]
        now, last = (
            jnp.where(free & jnp.isfinite(x), x, 0) for x in (g, memory.last_g)
        )
        columns = jnp.where(free, changes, 0)
        # Sums over the entries before, and the one itself.
        gram = jnp.cumsum((columns[:, None] * columns[None]).sum(3), 2)
        right = jnp.cumsum((columns * now[None]).sum(2), 1)
        step = self._combined(gram, right, moves + changes)
        sizes = [jnp.cumsum((x * x).sum(1)) for x in (now, last)]
        grown = ~(sizes[0] <= sizes[1])[:, None]
        rtol, atol = (jnp.asarray(x, z.dtype) for x in (self.rtol, self.atol))
        settled = jnp.abs(now) <= atol + rtol * jnp.abs(z)
        settled = settled.all(1, keepdims=True)
        new = plain - step
        bad = grown | settled | ~jnp.isfinite(new).all(1, keepdims=True)
        memory = _History(z, g, moves, changes)
        return unflattened(jnp.where(bad, plain, new), like), memory

    def _combined(self, gram, right, columns):
        """`columns γ`, of columns `(m, N, n)`: `(N, n)`."""
        squared = jnp.diagonal(gram).T
        # In units of the columns. One that is missing is zero, and changes nothing.
        unit = jnp.where(squared > 0, jnp.sqrt(squared), jnp.inf)
        matrix = jnp.moveaxis(gram / unit[:, None] / unit[None], 2, 0)
        eps = jnp.finfo(gram.dtype).eps
        ridge = eps**0.5 if self.ridge is None else self.ridge
        diagonal = jnp.where(squared > 0, ridge, 1 + ridge).astype(gram.dtype).T
        matrix = matrix + jnp.vectorize(jnp.diag, signature="(m)->(m,m)")(diagonal)
        factor = jnp.linalg.cholesky(matrix)
        gamma = jax.scipy.linalg.cho_solve((factor, True), (right / unit).T[..., None])
        return ((gamma[..., 0].T / unit)[..., None] * columns).sum(0)


TriangularAnderson.__init__.__doc__ = """**Arguments:**

- `rtol`, `atol`: entries are within tolerance if two evaluations differ by at most
    `atol + rtol |z|`.
- `history`: how many differences are kept.
- `ridge`: regularisation relative to the squared length of a column; `sqrt(eps)` of the
    dtype by default.
"""
