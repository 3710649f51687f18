"""`parafix.deer`'s `scan`: the same cells, weights and inputs in both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parafix.deer.jax import scan as scan_jax
from parafix.deer.torch import scan as scan_torch


LENGTH, SAMPLES, SIZE = 40, 2, 3
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}


def numbers(dtype):
    random = np.random.default_rng(0)
    shapes = {
        "w": (SIZE, SIZE),
        "u": (SIZE, SIZE),
        "init": (SAMPLES, SIZE),
        "xs": (LENGTH, SAMPLES, SIZE),
    }
    scale = {"w": 0.6, "u": 0.7}
    return {
        name: (scale.get(name, 1.0) * random.normal(size=shape)).astype(dtype)
        for name, shape in shapes.items()
    }


def by_jax(arrays, options):
    # One sample, under `vmap`.
    def solve(arrays, init, xs):
        def step(h, x):
            h = jnp.tanh(arrays["w"] @ h + arrays["u"] @ x)
            return h, jnp.sin(h)

        (_, ys), solution = scan_jax(step, init, xs, return_solution=True, **options)
        return ys, solution

    def loss(arrays):
        every = jax.vmap(solve, (None, 0, 1), (1, 0))
        ys, solution = every(arrays, arrays["init"], arrays["xs"])
        return (ys**2).sum(), (ys, solution)

    arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
    gradient, (ys, solution) = jax.jit(jax.grad(loss, has_aux=True))(arrays)
    stats = {name: np.asarray(x) for name, x in solution.stats.items()}
    gradient = {name: np.asarray(x) for name, x in gradient.items()}
    return np.asarray(ys), gradient, np.asarray(solution.result._value), stats


def by_torch(arrays, options):
    arrays = {name: torch.tensor(x, requires_grad=True) for name, x in arrays.items()}

    def step(h, x):
        h = torch.tanh(h @ arrays["w"].mT + x @ arrays["u"].mT)
        return h, h.sin()

    (_, ys), solution = scan_torch(
        step, arrays["init"], arrays["xs"], return_solution=True, **options
    )
    found = torch.autograd.grad((ys**2).sum(), list(arrays.values()))
    gradient = {name: g.numpy() for name, g in zip(arrays, found, strict=True)}
    stats = {name: x.numpy() for name, x in solution.stats.items()}
    return ys.detach().numpy(), gradient, solution.result.numpy(), stats


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "options",
    [
        {"solver": "deer"},
        {"solver": "deer", "window": 16},
        {"solver": "deer", "reverse": True},
        {"solver": "jacobi"},
        {"solver": "sequential"},
    ],
    ids=str,
)
def test_values_gradients_and_sweeps(options, dtype):
    arrays = numbers(dtype)
    expected, found = by_jax(arrays, options), by_torch(arrays, options)
    tolerance = TOLERANCES[dtype]
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=tolerance)
    for name, g in expected[1].items():
        unit = max(1.0, float(np.max(abs(g))))
        np.testing.assert_allclose(
            found[1][name], g, rtol=0, atol=tolerance * unit, err_msg=name
        )
    np.testing.assert_array_equal(found[2], expected[2])
    assert set(found[3]) == set(expected[3])
    if dtype == "float64":
        for name in ("num_steps", "num_evals", "num_linear", "converged_prefix"):
            np.testing.assert_array_equal(found[3][name], expected[3][name], name)
