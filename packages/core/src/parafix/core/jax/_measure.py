import jax.numpy as jnp


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
