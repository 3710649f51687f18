import jax.numpy as jnp

from parafix.core.jax import AbstractIteration


class Aitken(AbstractIteration):
    """Relaxation `z + w (f(z) - z)` whose factor `w` follows from the last two steps.

    Along the last step, `w` makes the residual smallest; with one unknown that is the
    secant method. It remembers one vector and one number, and solves problems that
    push iterates apart, where `z <- f(z)` diverges.

    Irons and Tuck, "A version of the Aitken accelerator for computer iteration", 1969.
    """

    rtol: float
    atol: float
    first: float = 0.5  # the factor of the first step

    def init_memory(self, z):
        """No residual yet, and the factor of the first step."""
        return jnp.zeros_like(z), jnp.asarray(self.first, z.dtype)

    def advance(self, z, g, jvp, memory):
        """The next iterate from `g = f(z) - z`, what to remember, no derivatives."""
        previous, factor = memory
        change = previous - g
        square = jnp.sum(change**2)
        # At the first step, and where the residual did not change, there is no slope.
        known = jnp.any(previous != 0) & (square > 0)
        slope = jnp.sum(previous * change) / jnp.where(known, square, 1)
        factor = jnp.where(known, factor * slope, self.first)
        return z + factor * g, (g, factor), 0
