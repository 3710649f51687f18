import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings


jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Every new shape compiles, so there is no deadline; the same examples every time.
settings.register_profile("jax", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("jax")


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    # Every compiled program holds memory maps, of which a process may have 65,530.
    yield
    jax.clear_caches()


@pytest.fixture
def getkey():
    """A function that returns another key at every call, the same in every run."""
    numbers = itertools.count()
    return lambda: jax.random.key(next(numbers))


@pytest.fixture
def check_derivatives(getkey):
    """`check(function, args, tolerance)`: both modes, beside central differences.

    One argument after the other, in a random direction; `tolerance` is relative.
    """

    def check(function, args, tolerance, step=1e-5):
        def randoms(tree):
            return jax.tree.map(lambda x: jax.random.normal(getkey(), x.shape), tree)

        weights = randoms(jax.eval_shape(function, *args))
        directions = [randoms(arg) for arg in args]

        def loss(*args):
            out = function(*args)
            terms = jax.tree.map(lambda x, w: (x * w).sum(), out, weights)
            return sum(jax.tree.leaves(terms))

        @jax.jit
        def everything(k, size):
            # Values, tangents and gradients: one program.
            moved = [
                jax.tree.map(lambda x, d, i=i: x + jnp.where(k == i, size, 0) * d, x, d)
                for i, (x, d) in enumerate(zip(args, directions, strict=True))
            ]
            value, gradients = jax.value_and_grad(loss, range(len(args)))(*moved)
            along = [
                jax.tree.map(lambda d, i=i: jnp.where(k == i, 1.0, 0.0) * d, d)
                for i, d in enumerate(directions)
            ]
            _, tangent = jax.jvp(loss, moved, along)
            products = jax.tree.map(lambda g, d: (g * d).sum(), list(gradients), along)
            return value, sum(jax.tree.leaves(products)), tangent

        for k in range(len(args)):
            _, backward, forward = everything(k, 0.0)
            difference = everything(k, step)[0] - everything(k, -step)[0]
            expected = difference / (2 * step)
            scale = max(1.0, abs(expected))
            assert np.abs(backward - expected) < tolerance * scale, k
            assert np.abs(forward - expected) < tolerance * scale, k

    return check
