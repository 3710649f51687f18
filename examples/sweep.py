"""A solver for chains of one's own, given as an object: nothing is registered."""

import jax
import jax.numpy as jnp

from parafix.core.jax import AbstractScan, AbstractSweep
from parafix.deer.jax import scan


class Leaky(AbstractSweep):
    """Changes fade by a known factor per step: for leaky units, without derivatives."""

    rtol: float
    atol: float
    scan: str | AbstractScan = "auto"
    chunk: int | None = None
    factor: float = 0.9

    def transition(self, step, z, x):
        """The next state, and the matrix at this time: here a diagonal, `(n,)`."""
        return step(z, x), jnp.full_like(z, self.factor)

    def num_linear(self, size):
        """How many Jacobian-vector products a transition takes."""
        return 0


def step(carry, x):
    carry = 0.9 * carry + 0.1 * jnp.tanh(carry[::-1] + x)
    return carry, carry


xs = jax.random.normal(jax.random.key(0), (1000, 2))
_, expected = jax.lax.scan(step, jnp.zeros(2), xs)
for solver in (Leaky(rtol=1e-5, atol=1e-5), "jacobi"):
    (_, ys), solution = scan(
        step, jnp.zeros(2), xs, solver=solver, return_solution=True
    )
    print(solver, "took", solution.stats["num_steps"], "sweeps")
    assert jnp.allclose(ys, expected, atol=1e-4)
