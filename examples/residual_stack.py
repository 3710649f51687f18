"""Depth as time: a residual network of 1000 layers, all of them at once.

    python residual_stack.py    # sweeps, deviation from the loop

The weights of a layer are the input of its step. What a layer adds is small, so few
sweeps do, with the Jacobian of a layer (deer) or the identity in its place (picard).
"""

import functools

import jax
import jax.numpy as jnp

from parafix.deer.jax import scan


jax.config.update("jax_enable_x64", True)

DEPTH, SIZE = 1000, 8


def layer(h, weights):
    matrix, bias = weights
    return h + jnp.tanh(matrix @ h + bias) / DEPTH**0.5, None


def forward(weights, h, solver):
    (h, _), solution = scan(layer, h, weights, solver=solver, return_solution=True)
    return jnp.sum(jnp.sin(h)), solution.stats["num_steps"]


keys = jax.random.split(jax.random.key(0), 3)
weights = (
    jax.random.normal(keys[0], (DEPTH, SIZE, SIZE)),
    jax.random.normal(keys[1], (DEPTH, SIZE)),
)
h = jax.random.normal(keys[2], (SIZE,))
derive = jax.jit(jax.value_and_grad(forward, has_aux=True), static_argnames="solver")
(expected, _), gradient = derive(weights, h, solver="sequential")
largest = functools.partial(jax.tree.reduce, jnp.maximum)
for solver in ("deer", "picard"):
    (value, sweeps), found = derive(weights, h, solver=solver)
    error = jax.tree.map(
        lambda x, y: jnp.abs(x - y).max() / jnp.abs(y).max(), found, gradient
    )
    print(
        f"{solver}: {sweeps} sweeps for {DEPTH} layers, deviation from the loop "
        f"{jnp.abs(value - expected):.1e}, of the gradients of all weights "
        f"{largest(error):.1e} (relative)"
    )
    assert jnp.abs(value - expected) < 1e-9
    assert largest(error) < 1e-9
