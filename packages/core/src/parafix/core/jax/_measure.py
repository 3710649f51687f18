import jax.numpy as jnp
from jax import lax


# How many times a reduction takes together: all at once to a number is slow on a CPU.
STRETCH = 32


def max_abs(x):
    """`max |x|`; NaN if there is one."""
    return jnp.max(jnp.abs(x))


def ratio(x, tol):
    """`x / tol`, where 0 / 0 is an entry that is met exactly at zero tolerance."""
    return jnp.where(x == 0, 0, x / tol)


def tolerance(rtol, atol, z):
    """`atol + rtol |z|`; each is a number, or one for each entry of a state."""
    rtol, atol = (_beside(jnp.asarray(x, z.dtype), z) for x in (rtol, atol))
    return atol + rtol * jnp.abs(z)


def _beside(x, z):
    # Ranks are not promoted in silence.
    return x if x.ndim == 0 else jnp.expand_dims(x, tuple(range(z.ndim - x.ndim)))


def max_residual(f, z, rtol, atol):
    """`max |f - z|` in units of the tolerance."""
    return max_abs(ratio(f - z, tolerance(rtol, atol, z)))


def first(where, index, length):
    """The first of the times `index` at which `where`, `(T, n)`, is true anywhere.

    `length` if there is none.
    """
    count, size = where.shape
    stretch = min(count, STRETCH)
    whole = count // stretch * stretch
    ends = where[:whole].reshape(-1, stretch, size).any((1, 2))
    begin = jnp.where(ends.any(), jnp.argmax(ends), ends.shape[0]) * stretch
    # Beyond the last whole stretch, if none was hit.
    begin = jnp.minimum(begin, count - stretch)
    hit = lax.dynamic_slice_in_dim(where, begin, stretch).any(1)
    return jnp.where(hit.any(), index[0] + begin + jnp.argmax(hit), length)


def rounded_throughout(r):
    """Whether no entry of `r`, `(T, n)`, is exactly zero for a stretch of times."""
    count, size = r.shape
    stretch = min(count, STRETCH)
    whole = count // stretch * stretch
    blocks = (r[:whole] != 0).reshape(-1, stretch, size)
    return blocks.any(1).all() & (r[count - stretch :] != 0).any(0).all()
