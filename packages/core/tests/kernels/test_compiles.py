"""The kernel compiles for GPUs, which needs none. Nothing runs."""

import json
import os
import subprocess
import sys


PROGRAM = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from parafix.core.kernels import diagonal_scan_kernel, DiagonalScanPlan


def facts(length, lanes, dtype, gradient, capability):
    complex_valued = dtype == "complex64"
    plan = DiagonalScanPlan.of(length, lanes, is_complex=complex_valued)
    kernel = diagonal_scan_kernel()
    number = {"float32": "*fp32", "bfloat16": "*bf16", "complex64": "*fp32"}[dtype]
    signature = {name: number for name in ("a", "b", "states", "init", "out", "of_a")}
    sizes = ("length", "lanes", "a_lanes", "shared", "inner")
    signature |= {name: "i32" for name in sizes}
    signature |= {"end": "*fp32", "words": "*i32"}
    constants = {
        "REVERSE": gradient, "GRADIENT": gradient, "WANTS_A": gradient,
        "COMPLEX": complex_valued, "CONJUGATE": complex_valued and gradient,
        "A_IN_TIME": True, "A_SHARED": False, **plan.meta(),
    }
    signature |= {name: "constexpr" for name in constants}
    signature = {name: signature[name] for name in kernel.arg_names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(signature.values())
        if kind != "constexpr"
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": plan.num_warps},
    )
    ptx = compiled.asm["ptx"]
    return {
        "chained": plan.chained,
        "binary": len(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "waits": ptx.count("ld.volatile.global.b64"),
        "publishes": ptx.count("atom.global.gpu.relaxed.exch.b64"),
        "wide loads": ptx.count("ld.global.v4") + ptx.count("cp.async.cg"),
    }


print(json.dumps([facts(*case) for case in json.loads(sys.argv[1])]))
"""

WALKED, CHAINED = (65536, 12288), (1048576, 128)
CASES = [
    (*WALKED, "float32", False, 90),
    (*WALKED, "float32", True, 80),
    (*CHAINED, "float32", False, 80),
    (*CHAINED, "float32", True, 90),
    (*CHAINED, "bfloat16", True, 80),
    (*WALKED, "complex64", False, 90),
    (*CHAINED, "complex64", True, 90),
]


def test_compiles(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CASES)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for case, found in zip(CASES, json.loads(done.stdout), strict=True):
        *shape, dtype, _, capability = case
        assert found["binary"] > 0, case
        # Programs talk only where there is a chain, and past the caches.
        assert found["chained"] == (tuple(shape) == CHAINED), case
        talking = found["waits"] > 0, found["publishes"] > 0
        assert talking == (found["chained"], found["chained"]), case
        # What devices of this generation have for one program: 163 and 227 KiB.
        assert found["shared"] <= {80: 163, 90: 227}[capability] * 1024, case
        if dtype == "float32":
            assert found["wide loads"] > 0, case
