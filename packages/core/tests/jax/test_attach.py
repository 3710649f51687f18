"""States that were found elsewhere, with the derivatives of the chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parafix.core.jax import attach, Chain, ChainAdjoint, Diagonal, Structured
from parafix.core.testing.jax import assert_close, assert_identical


LENGTH, SIZE = 11, 2
XS = jax.random.normal(jax.random.key(0), (LENGTH, SIZE))
WEIGHTS = jnp.array([[0.5, -0.9], [0.3, 0.7]])
POINT = (WEIGHTS, jnp.array([0.1, -0.4]), XS)


def chain(weights, init, xs):
    # The weights are closed over.
    return Chain(lambda z, x: jnp.tanh(weights @ z + x), init, xs, LENGTH)


def states(problem):
    def body(z, x):
        z = problem.step(z, x)
        return z, z

    return lax.scan(body, problem.init, problem.xs)[1]


def attached(adjoint):
    def found(*point):
        # No derivative gets through.
        z = lax.stop_gradient(states(chain(*point)))
        return attach(chain(*point), z, adjoint=adjoint)

    return found


@pytest.mark.parametrize(
    "adjoint", ["implicit", ChainAdjoint(scan="associative", chunk=4)]
)
def test_derivatives_are_those_of_a_loop(adjoint):
    loop = lambda *point: states(chain(*point))
    weights = jnp.cos(jnp.arange(LENGTH * SIZE)).reshape(LENGTH, SIZE)
    places = (0, 1, 2)

    def gradient(run):
        return jax.grad(lambda *p: (weights * run(*p) ** 2).sum(), places)

    for transform in (
        lambda run: run,
        gradient,
        lambda run: lambda *p: jax.jvp(run, p, p)[1],
        lambda run: lambda *p: jax.jvp(gradient(run), p, p)[1],
    ):
        actual, expected = (
            jax.jit(transform(run))(*POINT) for run in (attached(adjoint), loop)
        )
        assert_close(actual, expected, 1e-12)


def test_the_value_is_what_is_given():
    problem, z = chain(*POINT), jnp.ones((LENGTH, SIZE)).at[3].set(jnp.nan)
    assert_identical(attach(problem, z), z)
    assert not jax.grad(lambda z: attach(problem, z)[:3].sum())(z).any()
    tangent = jax.jvp(lambda xs: attach(chain(*POINT[:2], xs), z), (XS,), (XS,))[1]
    assert_identical(np.isnan(tangent[:4]), np.isnan(z[:4]))


def test_of_no_steps():
    problem = Chain(lambda z, x: z, jnp.ones(SIZE), None, 0)
    assert attach(problem, jnp.zeros((0, SIZE))).shape == (0, SIZE)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match=r"`z` must have shape \(11, 2\)"):
        attach(chain(*POINT), jnp.zeros((LENGTH, 3)))
    with pytest.raises(TypeError, match="dense problems"):
        jax.grad(
            lambda xs: attach(chain(*POINT[:2], xs), xs, adjoint="one-step").sum()
        )(XS)
    false = Structured(chain(*POINT).step, Diagonal())
    of_inputs = lambda xs: attach(Chain(false, POINT[1], xs, LENGTH), XS).sum()
    with pytest.raises(Exception, match="structure of the Jacobian is false"):
        jax.block_until_ready(jax.grad(of_inputs)(XS))
