"""`affine_scan`: the same recurrences by every scan, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parafix.core.jax as in_jax
import parafix.core.torch as in_torch


TOLERANCES = {
    "float32": 1e-5,
    "complex64": 1e-5,
    "float64": 1e-10,
    "complex128": 1e-10,
}
# Length, lead of `a` (time and batch), whether there is an `init`.
CASES = (
    (0, None, True),
    (1, None, False),
    (7, (1, 3), True),
    (33, (33, 1), False),
    (33, None, True),
)


def recurrence(structure, length, lead, with_init, dtype):
    random = np.random.default_rng(length)

    def normal(*shape):
        x = random.normal(size=shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * random.normal(size=shape)
        return x.astype(dtype)

    tail = (2, 2) if structure == "dense" else (2,)
    a = normal(*((length, 3) if lead is None else lead), *tail) * (0.6 / len(tail))
    arrays = [a.astype(dtype), normal(length, 3, 2)]
    return [*arrays, normal(3, 2)] if with_init else arrays


def by_jax(arrays, **options):
    def loss(arrays):
        x = in_jax.affine_scan(*arrays, **options)
        weights = jnp.cos(jnp.arange(x.size, dtype=x.real.dtype)).reshape(x.shape)
        return jnp.sum(weights * jnp.sin(x.real + 2 * x.imag)), x

    gradient, x = jax.jit(jax.grad(loss, has_aux=True))(list(map(jnp.asarray, arrays)))
    # PyTorch's gradient of a real function of complex numbers is the conjugate.
    return [np.asarray(x), *(np.conj(g) for g in gradient)]


def by_torch(arrays, **options):
    arrays = [torch.tensor(x, requires_grad=True) for x in arrays]
    x = in_torch.affine_scan(*arrays, **options)
    part = x.real + 2 * x.imag if x.is_complex() else x
    weights = torch.arange(x.numel(), dtype=part.dtype).cos().reshape(x.shape)
    gradient = torch.autograd.grad((weights * part.sin()).sum(), arrays)
    return [
        x.detach().resolve_conj().numpy(),
        *(g.resolve_conj().numpy() for g in gradient),
    ]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("structure", ["diagonal", "dense"])
@pytest.mark.parametrize("scan", ["sequential", "associative", "blocked"])
def test_values_and_gradients(scan, structure, dtype):
    # Most of the time is compilation.
    cases = CASES if dtype == "float64" else CASES[1:3]
    for number, case in enumerate(cases):
        arrays = recurrence(structure, *case, np.dtype(dtype))
        options = {"reverse": number % 2 == 0, "scan": scan}
        found, expected = by_torch(arrays, **options), by_jax(arrays, **options)
        for x, y in zip(found, expected, strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
            unit = max(1.0, float(np.max(abs(y), initial=0)))
            np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCES[dtype] * unit)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_both_directions(dtype):
    arrays = recurrence("dense", 9, None, True, np.dtype(dtype))
    for reverse in (False, True):
        found, expected = (by(arrays, reverse=reverse) for by in (by_torch, by_jax))
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-10)


def test_errors_are_the_same():
    a, b = np.ones((3, 2)), np.ones((3, 2))
    for bad, options in (
        ((np.ones((3, 2, 2, 2)), b), {}),
        ((np.ones((4, 2)), b), {}),
        ((a, b, np.ones(3)), {}),
        ((a, b), {"scan": "no-such-scan"}),
    ):
        kinds = []
        for scan, convert in (
            (in_jax.affine_scan, jnp.asarray),
            (in_torch.affine_scan, torch.as_tensor),
        ):
            with pytest.raises((ValueError, TypeError, LookupError)) as error:
                scan(*map(convert, bad), **options)
            kinds.append(error.type)
        assert kinds[0] is kinds[1]
