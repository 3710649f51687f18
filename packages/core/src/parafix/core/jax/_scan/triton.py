import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from ...kernels import (
    diagonal_scan_kernel,
    DiagonalScanPlan,
    LaneLayout,
    reasons_against_diagonal_scan,
    reasons_against_libraries,
)
from .fused import AbstractFusedScan


class TritonScan(AbstractFusedScan):
    """A GPU kernel for diagonal `a`: every number is read once and written once.

    The lanes of a state are independent. If they are many, each program walks along
    the time of some of them; if few, time is cut into blocks, whose programs hand the
    state on while others read ahead (after Merrill and Garland, "Single-pass parallel
    prefix scan with decoupled look-back", 2016, with the order of all operations
    fixed: the same arguments give the same bits). The gradient takes one pass more.

    Arithmetic is in float32, also for float16 and bfloat16. An entry of the result is
    NaN or infinite where that of a loop is. It can be so earlier only where a product
    of up to 8192 successive `a` overflows and the state that it multiplies is not zero.

    The kernel is that of PyTorch, launched through jax-triton. JAX keeps the parts of
    complex numbers apart for it, which takes a pass more for each array.
    """

    plan: DiagonalScanPlan | None = eqx.field(default=None, static=True)

    def solve(self, a, b, init, reverse):
        out, _, _ = self._run(a, b, None, init, reverse, with_a=False)
        return out

    def vjp(self, a, x, init, g, reverse, with_a):
        of_b, of_init, of_a = self._run(a, g, x, init, not reverse, with_a)
        if of_a is not None:
            axes = tuple(
                i for i, size in enumerate(of_a.shape) if size != a.shape[i] == 1
            )
            of_a = of_a.sum(axes, keepdims=True).astype(a.dtype)
        return of_a, of_b, of_init.astype(init.dtype)

    def reasons_against(self, a, b):
        reasons = reasons_against_diagonal_scan(a.ndim, b.shape, str(b.dtype))
        return reasons + reasons_against_libraries("triton", "jax_triton")

    def reasons_against_platform(self, platform):
        if platform == "cuda":
            return []
        return [f"it runs on an NVIDIA GPU, and this is compiled for {platform}"]

    def _run(self, a, b, states, init, reverse, with_a):
        """The scan, or with `states` its transpose, and what the scan ends with.

        The last result are the cotangents of `a`, summed over no axis but time.
        """
        length, *batch, size = b.shape
        layout = LaneLayout.of(a.shape, b.shape)
        is_complex = jnp.iscomplexobj(b)
        plan = self.plan or DiagonalScanPlan.of(
            length, init.size, is_complex=is_complex
        )
        in_time = a.shape[0] == length
        a_ = jnp.broadcast_to(a, (a.shape[0], *layout.batch, size))
        inputs = [_parts(x) for x in (a_, b, b if states is None else states, init)]

        wide = jnp.complex64 if is_complex else jnp.float32
        rows = (length if in_time else plan.chunks(length)) if with_a else 0
        whole = in_time and a.shape == b.shape
        out, of_a, end, _ = launch(
            inputs,
            (length, init.size, layout.lanes, layout.shared, layout.inner),
            [
                _shape_of_parts(b.shape, b.dtype),
                # Something has to be there, if nothing is wanted.
                _shape_of_parts(
                    (rows, *batch, size) if with_a else (1,), b.dtype if whole else wide
                ),
                _shape_of_parts(init.shape, wide),
                jax.ShapeDtypeStruct(
                    (plan.words(length, init.size, is_complex=is_complex),), jnp.int32
                ),
            ],
            plan,
            {
                "REVERSE": reverse,
                "GRADIENT": states is not None,
                "WANTS_A": with_a,
                "COMPLEX": is_complex,
                "CONJUGATE": False,
                "A_IN_TIME": in_time,
                "A_SHARED": layout.shared > 1,
            },
        )
        out, of_a, end = (_whole(x, is_complex) for x in (out, of_a, end))
        return out, end, of_a if with_a else None


def launch(inputs, sizes, outputs, plan, meta):
    """Calls the kernel: its arguments in the order of its own, but constants by name.

    **Arguments:**

    - `inputs`: the arrays `a`, `b`, `states`, `init`.
    - `sizes`: `length`, `lanes`, `a_lanes`, `shared`, `inner`.
    - `outputs`: the shapes and dtypes of `out`, `of_a`, `end`, `words`.
    - `plan`, `meta`: the constants, those of the plan and the others.
    """
    # Imports only where JAX has GPU support: when code is lowered for a GPU.
    jax_triton = importlib.import_module("jax_triton")
    length, lanes, *_ = sizes
    return jax_triton.triton_call(
        *inputs,
        *sizes,
        kernel=diagonal_scan_kernel(),
        out_shape=outputs,
        grid=plan.programs(length, lanes),
        zeroed_outputs=(3,),
        num_warps=plan.num_warps,
        **meta,
        **plan.meta(),
    )


def _parts(x):
    """Complex numbers as pairs, which is what a kernel of Triton can be given."""
    return jnp.stack([x.real, x.imag], -1) if jnp.iscomplexobj(x) else x


def _shape_of_parts(shape, dtype):
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jax.ShapeDtypeStruct((*shape, 2), jnp.float32)
    return jax.ShapeDtypeStruct(shape, dtype)


def _whole(x, is_complex):
    return lax.complex(x[..., 0], x[..., 1]) if is_complex else x
