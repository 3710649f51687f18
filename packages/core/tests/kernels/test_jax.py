"""The kernel under Triton's interpreter, launched from JAX.

jax-triton imports only where JAX has GPU support. What it would be called with is
handed to the interpreter here, so all of the launcher is tested but that call.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parafix.core.jax import affine_scan, TritonScan
from parafix.core.kernels import diagonal_scan_kernel, DiagonalScanPlan
from parafix.core.testing.jax import assert_close


jax.config.update("jax_enable_x64", True)

# The class of the same name hides nothing: the module is what is patched.
MODULE = importlib.import_module("parafix.core.jax._scan.triton")
WALK = TritonScan(DiagonalScanPlan(False, 16, 8, 4, 1, 1))
CHAIN = TritonScan(DiagonalScanPlan(True, 16, 8, 4, 1, 1))
SCANS = pytest.mark.parametrize("scan", [WALK, CHAIN], ids=["walk", "chain"])
TOLERANCES = {"float32": 3e-6, "complex64": 3e-6, "bfloat16": 1.5e-2}


def as_torch(x):
    if x.dtype == jnp.bfloat16:
        return torch.from_numpy(np.array(x).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(x))


def as_numpy(x, dtype):
    if dtype == jnp.bfloat16:
        return x.view(torch.int16).numpy().view(dtype)
    return x.numpy()


class JaxTriton:
    """`jax_triton`, by the interpreter; it keeps what it was called with."""

    def __init__(self):
        self.calls = []

    def triton_call(
        self, *arguments, kernel, out_shape, grid, zeroed_outputs, num_warps, **meta
    ):
        assert kernel is diagonal_scan_kernel()
        arrays = [x for x in arguments if not isinstance(x, int)]
        sizes = arguments[len(arrays) :]
        assert all(isinstance(x, int) for x in sizes)
        self.calls.append({"sizes": sizes, **meta})

        def call(*arrays):
            outputs = []
            for number, shape in enumerate(out_shape):
                x = as_torch(np.zeros(shape.shape, shape.dtype))
                outputs.append(x if number in zeroed_outputs else x.fill_(torch.nan))
            kernel[(grid,)](
                *map(as_torch, arrays), *sizes, *outputs, **meta, num_warps=num_warps
            )
            return [
                as_numpy(x, shape.dtype)
                for x, shape in zip(outputs, out_shape, strict=True)
            ]

        return jax.pure_callback(call, out_shape, *arrays)


@pytest.fixture
def interpreter(monkeypatch):
    """Makes the kernel run wherever JAX does."""
    fake = JaxTriton()
    monkeypatch.setitem(__import__("sys").modules, "jax_triton", fake)
    monkeypatch.setattr(MODULE, "reasons_against_libraries", lambda *names: [])
    monkeypatch.setattr(TritonScan, "reasons_against_platform", lambda *_: [])
    jax.clear_caches()
    yield fake
    jax.clear_caches()


def normal(seed, shape, dtype):
    random = np.random.default_rng(seed)
    x = random.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 1j * random.normal(size=shape)
    return jnp.asarray(x, dtype)


def recurrence(shape, dtype="float32", lead=None, seed=0):
    lead = shape[:-1] if lead is None else lead
    a = normal(seed, (*lead, shape[-1]), dtype)
    return (
        a * jnp.asarray(0.7, dtype),
        normal(seed + 1, shape, dtype),
        normal(seed + 2, shape[1:], dtype),
    )


def wide(tree):
    convert = lambda x: x.astype(jnp.complex128 if jnp.iscomplexobj(x) else jnp.float64)
    return jax.tree.map(convert, tree)


def loss_of(scan, weights, reverse):
    def loss(arguments):
        x = affine_scan(*arguments, reverse=reverse, scan=scan)
        return jnp.sum((x * weights.astype(x.dtype)).real), x

    return loss


@SCANS
@pytest.mark.parametrize(
    ("dtype", "lead"),
    [
        ("float32", None),
        ("float32", (1, 3)),
        ("complex64", (1, 1)),
        ("bfloat16", (35, 1)),
        ("complex64", None),
    ],
    ids=str,
)
def test_values_and_gradients(interpreter, scan, dtype, lead):
    arguments = recurrence((35, 3, 2), dtype, lead)
    weights = normal(9, (35, 3, 2), dtype)
    reverse = lead == (1, 1)
    (_, x), found = jax.jit(
        jax.value_and_grad(loss_of(scan, weights, reverse), has_aux=True)
    )(arguments)
    assert all(g.dtype == dtype for g in (x, *found))
    (_, y), expected = jax.value_and_grad(
        loss_of("sequential", wide(weights), reverse), has_aux=True
    )(wide(arguments))
    assert_close(wide((x, found)), (y, expected), TOLERANCES[dtype])
    # One pass forward, one back.
    assert [call["GRADIENT"] for call in interpreter.calls] == [False, True]


@SCANS
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 300])
def test_lengths(interpreter, scan, length):
    arguments = recurrence((length, 2))
    x = jax.jit(lambda *x: affine_scan(*x, scan=scan))(*arguments)
    assert_close(wide(x), affine_scan(*wide(arguments), scan="sequential"), 3e-6)


def test_vmap_is_more_of_the_batch(interpreter):
    samples = [recurrence((20, 2), seed=i) for i in range(3)]
    a, b, init = (jnp.stack(x) for x in zip(*samples, strict=True))
    x = jax.jit(jax.vmap(lambda *x: affine_scan(*x, scan=WALK)))(a, b, init)
    assert [call["sizes"][:3] for call in interpreter.calls] == [(20, 6, 6)]
    for i, sample in enumerate(samples):
        assert_close(wide(x[i]), affine_scan(*wide(sample), scan="sequential"), 3e-6)
    interpreter.calls.clear()
    one = lambda b: affine_scan(a[0], b, init[0], scan=WALK)
    jax.jit(jax.vmap(one))(b)
    # What all samples share is read once.
    assert [call["sizes"][:3] for call in interpreter.calls] == [(20, 6, 2)]


def test_derivatives_of_second_order(interpreter):
    arguments = recurrence((5, 1))
    weights = normal(9, (5, 1), "float32")

    def hessian(scan, arguments, weights):
        loss = lambda x: jnp.sin(loss_of(scan, weights, False)(x)[0])
        return jax.hessian(loss)(arguments)

    found = hessian(WALK, arguments, weights)
    expected = hessian("associative", wide(arguments), wide(weights))
    assert_close(wide(found), expected, 1e-5)


def test_auto_takes_the_kernel(interpreter):
    arguments = recurrence((20, 2))
    jax.jit(affine_scan)(*arguments)
    assert len(interpreter.calls) == 1
    jax.jit(affine_scan)(*wide(arguments))
    assert len(interpreter.calls) == 1
