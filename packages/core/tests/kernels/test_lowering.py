"""JAX programs for a GPU hold the kernel, compiled by jax-triton. Nothing runs.

jax-triton imports where JAX's own library for CUDA is installed, driver or not.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest


PROGRAM = """
import json
import jax
import jax.numpy as jnp
from jaxlib import gpu_triton

# The only thing that a device is asked for.
gpu_triton.get_compute_capability = lambda device: 90

from parafix.core.jax import affine_scan


def calls(function, shape, dtype):
    arguments = [jax.ShapeDtypeStruct(s, dtype) for s in (shape, shape, shape[1:])]
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    return text.count("@triton_kernel_call"), text.count("concatenate")


def total(scan):
    return lambda *arguments: jnp.abs(affine_scan(*arguments, scan=scan)).sum()


found = []
for scan in ("triton", "auto"):
    for shape, dtype in (
        ((65536, 8, 1536), jnp.float32),
        ((4096, 128), jnp.bfloat16),
        ((4096, 128), jnp.complex64),
    ):
        found.append((
            calls(total(scan), shape, dtype)[0],
            calls(jax.grad(total(scan), (0, 1, 2)), shape, dtype)[0],
        ))
copies = calls(jax.grad(total("auto"), (0, 1, 2)), (4096, 128), jnp.float32)[1]
dense = calls(total("auto"), (4096, 128), jnp.float64)[0]
print(json.dumps({"calls": found, "copies": copies, "others": dense}))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("jax_triton") is None
    or importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="jax-triton and jax-cuda13-plugin are not installed",
)
def test_programs_for_a_gpu_call_the_kernel():
    environment = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    del environment["TRITON_INTERPRET"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    # Once forward, once back, and nothing is glued together around it.
    assert found["calls"] == [[1, 2]] * 6
    assert found["copies"] == 0
    # What it has reasons against is left to others.
    assert found["others"] == 0
