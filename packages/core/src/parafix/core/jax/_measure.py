import jax.numpy as jnp


def max_abs(x):
    """`max |x|`; NaN if there is one."""
    return jnp.max(jnp.abs(x))


def ratio(x, tol):
    """`x / tol`, where 0 / 0 is an entry that is met exactly at zero tolerance."""
    return jnp.where(x == 0, 0, x / tol)


def tolerance(rtol, atol, z):
    """`atol + rtol |z|`; each is a number, or one for each entry of a state."""
    return jnp.asarray(atol, z.dtype) + jnp.asarray(rtol, z.dtype) * jnp.abs(z)
