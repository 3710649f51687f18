"""On an accelerator, against float64 on the CPU. `nox -s gpu` runs these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parafix.core.jax import affine_scan
from parafix.core.testing.jax import assert_close


pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _accelerator():
    if jax.default_backend() == "cpu":
        pytest.fail("JAX finds no accelerator here")


@pytest.mark.parametrize("scan", ["auto", "associative", "blocked", "sequential"])
@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
@pytest.mark.parametrize("reverse", [False, True])
def test_affine_scan_and_its_gradient(scan, dense, reverse):
    length, batch, size = (4097, 16, 4)
    random = np.random.default_rng(0)
    shape = (length, batch, size, size) if dense else (length, batch, size)
    a = random.uniform(-0.9, 0.9, shape) / (2 if dense else 1)
    b, init = random.normal(size=shape[:3]), random.normal(size=shape[1:3])

    def both(scan, *arguments):
        def loss(a, b, init):
            x = affine_scan(a, b, init, reverse=reverse, scan=scan)
            return (x**2).mean(), x

        (_, x), gradient = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
            *arguments
        )
        return x, jax.tree.map(lambda g: g * b.size, gradient)

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        expected = jax.jit(both, static_argnums=0)("sequential", a, b, init)
    single = [jnp.asarray(x, jnp.float32) for x in (a, b, init)]
    found = jax.jit(both, static_argnums=0)(scan, *single)
    found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
    assert_close(found, jax.tree.map(np.asarray, expected), tolerance=3e-5)


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 1000, 4097, 100_003])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_kernel(length, dtype, reverse):
    random = np.random.default_rng(0)

    def normal(*shape):
        x = random.normal(size=shape)
        if dtype == "complex64":
            x = x + 1j * random.normal(size=shape)
        return jnp.asarray(x, dtype)

    shape = (length, 3, 37)
    a, b, init, g = normal(*shape), normal(*shape), normal(*shape[1:]), normal(*shape)
    one = jnp.asarray(1, dtype)
    a = a / jnp.maximum(jnp.abs(a), 1).astype(dtype) * (one - one / (10 + length))

    def everything(scan, a, b, init, g):
        solve = lambda *x: affine_scan(*x, reverse=reverse, scan=scan)
        x, pull = jax.vjp(solve, a, b, init)
        return x, *pull(g)

    wide = "complex128" if dtype == "complex64" else "float64"
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        arguments = [np.asarray(x).astype(wide) for x in (a, b, init, g)]
        expected = jax.jit(everything, static_argnums=0)("sequential", *arguments)
    found = jax.jit(everything, static_argnums=0)("triton", a, b, init, g)
    found = jax.tree.map(lambda x: np.asarray(x).astype(wide), found)
    tolerance = 3e-2 if dtype == "bfloat16" else 1e-4
    assert_close(found, jax.tree.map(np.asarray, expected), tolerance=tolerance)


def test_auto_takes_the_kernel():
    from parafix.core.jax._affine_scan import automatic_choice

    assert automatic_choice() == "auto takes 'triton' for diagonal matrices on cuda"
