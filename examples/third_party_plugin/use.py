"""Both components at work, each by its name."""

import jax.numpy as jnp

from parafix.core.jax import affine_scan, fixed_point
from parafix.deer.jax import DEER, scan


# The slope at the solution is -3: the plain iteration runs away from it.
solution = fixed_point(lambda y: 2 - y**3, jnp.array([1.5, 0.2]), solver="aitken")
print(solution.value, "in", solution.stats["num_steps"], "steps")
assert jnp.allclose(solution.value, 1.0, atol=1e-5)

x = affine_scan(jnp.full((5, 1), 0.5), jnp.ones((5, 1)), scan="doubling")
assert jnp.allclose(x[:, 0], 2 - 0.5 ** jnp.arange(5))


def step(carry, x):
    carry = jnp.tanh(0.5 * carry + x)
    return carry, carry


# A scan works inside a solver that has never heard of it.
xs = jnp.linspace(-1, 1, 200)[:, None]
_, expected = scan(step, jnp.zeros(1), xs, solver="sequential")
solver = DEER(rtol=1e-5, atol=1e-5, scan="doubling")
_, ys = scan(step, jnp.zeros(1), xs, solver=solver)
assert jnp.allclose(ys, expected, atol=1e-4)
print("the scan inside DEER agrees with the loop")
