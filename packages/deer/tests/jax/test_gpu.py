"""On an accelerator, against float64 on the CPU. `nox -s gpu` runs these."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parafix.core.jax import RESULTS
from parafix.core.testing.jax import assert_close, gru, logistic
from parafix.deer.jax import choose, scan


pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _accelerator():
    if jax.default_backend() == "cpu":
        pytest.fail("JAX finds no accelerator here")


def outputs_and_gradient(use, recurrence):
    def loss(params, init, xs):
        _, ys = use(recurrence.bind(params), init, xs)
        return (ys**2).sum(), ys

    arguments = (recurrence.params, recurrence.init, recurrence.xs)
    differentiated = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    # Without TF32, whose ten bits are fewer than the tolerance asks for.
    with jax.default_matmul_precision("highest"):
        (_, ys), gradient = jax.jit(differentiated)(*arguments)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), (ys, gradient))


@pytest.mark.parametrize("solver", ["auto", "deer", "jacobi", "sequential"])
@pytest.mark.parametrize("window", [None, 1000])
def test_scan_and_its_gradient(solver, window):
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        recurrence = gru(jax.random.key(0), 10_000, size=4)
        expected = outputs_and_gradient(lax.scan, recurrence)

    def use(f, init, xs):
        return scan(f, init, xs, solver=solver, window=window)

    fields = {"params": recurrence.params, "init": recurrence.init, "xs": recurrence.xs}
    single = jax.tree.map(lambda x: np.asarray(x, np.float32), fields)
    single = dataclasses.replace(recurrence, **single)
    assert_close(outputs_and_gradient(use, single), expected, tolerance=1e-3)


def test_auto_takes_deer_where_sweeps_pay():
    assert choose(10_000, 4, jax.default_backend()).solver == "deer"


def test_chaos_is_no_success():
    _, solution = scan(
        logistic,
        jnp.asarray(0.3),
        length=200,
        solver="deer",
        throw=False,
        return_solution=True,
    )
    assert solution.result == RESULTS.ill_conditioned
