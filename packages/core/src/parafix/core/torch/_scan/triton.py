import dataclasses

import torch
from torch import Tensor

from ...kernels import (
    diagonal_scan_kernel,
    DiagonalScanPlan,
    interpreted,
    LaneLayout,
    reasons_against_diagonal_scan,
    reasons_against_libraries,
)
from .fused import AbstractFusedScan


@dataclasses.dataclass(frozen=True)
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

    **Attributes:**

    - `plan`: how the work is cut; `None` decides by the shape.
    """

    plan: DiagonalScanPlan | None = None

    def solve(self, a, b, init, reverse):
        out, _, _ = self._run(a, b, None, init, reverse, with_a=False)
        return out

    def vjp(self, a, x, init, g, reverse, with_a):
        of_b, of_init, of_a = self._run(a, g, x, init, not reverse, with_a)
        if of_a is not None:
            of_a = of_a.sum_to_size(a.shape).to(a.dtype)
        return of_a, of_b, of_init.to(init.dtype)

    def reasons_against(self, a, b):
        reasons = reasons_against_diagonal_scan(
            a.ndim, b.shape, str(b.dtype).removeprefix("torch.")
        )
        reasons += reasons_against_libraries("triton")
        return reasons + _reasons_against_device(b.device)

    def _run(
        self,
        a: Tensor,
        b: Tensor,
        states: Tensor | None,
        init: Tensor,
        reverse: bool,
        with_a: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The scan, or with `states` its transpose, and what the scan ends with.

        The last result are the cotangents of `a`, summed over no axis but time.
        """
        length, *batch, size = b.shape
        lanes = init.numel()
        layout = LaneLayout.of(a.shape, b.shape)
        is_complex = b.is_complex()
        plan = self.plan or DiagonalScanPlan.of(length, lanes, is_complex=is_complex)
        in_time = a.shape[0] == length
        expanded = a.expand(a.shape[0], *layout.batch, size)
        a_, b_, init_ = map(_plain, (expanded, b, init))
        states_ = b_ if states is None else _plain(states)

        wide = torch.complex64 if is_complex else torch.float32
        out = torch.empty_like(b, memory_format=torch.contiguous_format)
        end = torch.empty(init.shape, dtype=wide, device=b.device)
        of_a = None
        if with_a:
            # What is summed afterwards stays in float32 until then.
            rows = length if in_time else plan.chunks(length)
            whole = in_time and a.shape == b.shape
            dtype = b.dtype if whole else wide
            of_a = torch.empty((rows, *batch, size), dtype=dtype, device=b.device)
        words = torch.zeros(
            plan.words(length, lanes, is_complex=is_complex),
            dtype=torch.int32,
            device=b.device,
        )
        # Triton launches on the current device, whichever the tensors are on.
        with torch.cuda.device_of(b):
            diagonal_scan_kernel()[(plan.programs(length, lanes),)](
                a_,
                b_,
                states_,
                init_,
                length,
                lanes,
                layout.lanes,
                layout.shared,
                layout.inner,
                _parts(out),
                _parts(end if of_a is None else of_a),
                _parts(end),
                words,
                REVERSE=reverse,
                GRADIENT=states is not None,
                WANTS_A=with_a,
                COMPLEX=is_complex,
                CONJUGATE=is_complex and states is not None,
                A_IN_TIME=in_time,
                A_SHARED=layout.shared > 1,
                **plan.meta(),
                num_warps=plan.num_warps,
            )
        return out, end, of_a


def _plain(x: Tensor) -> Tensor:
    """Contiguous, with what complex numbers consist of side by side."""
    return _parts(x.resolve_conj().resolve_neg().contiguous())


def _parts(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _reasons_against_device(device: torch.device) -> list[str]:
    if interpreted():
        if device.type == "cpu":
            return []
        return [
            f"Triton interprets kernels on the CPU, and the tensors are on {device}"
        ]
    if device.type != "cuda":
        return [f"it runs on an NVIDIA GPU, and the tensors are on {device}"]
    if torch.version.hip is not None:
        return ["it runs on NVIDIA GPUs and was not tried on others"]
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return [
            f"it needs compute capability 8.0 or more, and {device} has {major}.{minor}"
        ]
    return []
