"""A Markov chain at all times at once: the Metropolis-adjusted Langevin algorithm.

    python langevin.py                # sweeps, deviation from the loop, acceptance
    python langevin.py samples.png    # and a picture, by matplotlib

The randomness of a step comes with its input, here a key: then a step is a function of
the state, and a chain of them one equation.
"""

import functools
import sys

import jax
import jax.numpy as jnp

from parafix.deer.jax import scan


jax.config.update("jax_enable_x64", True)

LENGTH, SIZE = 4000, 0.6


def log_density(mean, z):
    """Of two normal distributions of equal weight, around `mean` and `-mean`."""
    precision = jnp.array([[4.0, -2.0], [-2.0, 4.0]]) / 3
    return jnp.logaddexp(mean @ precision @ z, -mean @ precision @ z) - (
        z @ precision @ z / 2
    )


def step(mean, z, key):
    """A proposal along the gradient, and whether it is accepted."""
    for_noise, for_decision = jax.random.split(key)
    drift = lambda z: z + SIZE * jax.grad(log_density, 1)(mean, z)
    forth = jnp.sqrt(2 * SIZE) * jax.random.normal(for_noise, (2,))
    proposal = drift(z) + forth
    back = z - drift(proposal)
    ratio = log_density(mean, proposal) - log_density(mean, z)
    ratio = ratio + (forth @ forth - back @ back) / (4 * SIZE)
    accepted = jnp.log(jax.random.uniform(for_decision)) < ratio
    z = jnp.where(accepted, proposal, z)
    return z, (z, accepted)


@functools.partial(jax.jit, static_argnames="solver")
@functools.partial(jax.grad, has_aux=True)
def sensitivity(mean, solver):
    """Of an expectation to the target, decisions being what they are; and the run."""
    keys = jax.random.split(jax.random.key(0), LENGTH)
    chain = functools.partial(step, mean)
    (_, (z, accepted)), solution = scan(
        chain, jnp.zeros(2), keys, solver=solver, return_solution=True
    )
    return jnp.mean(z[:, 0] ** 2), (z, accepted, solution.stats["num_steps"])


mean = jnp.array([1.0, 0.5])
expected, (expected_z, decisions, _) = sensitivity(mean, solver="sequential")
for solver in ("deer", "quasi-deer"):
    gradient, (z, accepted, sweeps) = sensitivity(mean, solver=solver)
    print(
        f"{solver}: {sweeps} sweeps for {LENGTH} steps, acceptance "
        f"{accepted.mean():.0%}; beside the loop {(accepted != decisions).sum()} other "
        f"decisions, states off by {jnp.abs(z - expected_z).max():.1e}, "
        f"the gradient by {jnp.abs(gradient - expected).max():.1e}"
    )
    assert (accepted == decisions).all()
    assert jnp.allclose(z, expected_z, atol=1e-9)
    assert jnp.allclose(gradient, expected, atol=1e-9)

if len(sys.argv) > 1:
    from matplotlib import pyplot

    _, axes = pyplot.subplots()
    axes.plot(*z.T, ".", markersize=3)
    axes.set(xlabel="first coordinate", ylabel="second coordinate", aspect="equal")
    pyplot.savefig(sys.argv[1])
