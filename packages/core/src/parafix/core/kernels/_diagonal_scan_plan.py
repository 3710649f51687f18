"""How the kernel of the diagonal affine scan is cut into programs."""

import dataclasses
import importlib
import math
from collections.abc import Sequence
from typing import Any

from ._available import interpreted


_DTYPES = ("float32", "bfloat16", "float16", "complex64")


def diagonal_scan_kernel() -> Any:
    """The Triton kernel; this imports Triton."""
    return importlib.import_module(f"{__package__}._diagonal_scan").diagonal_scan


def reasons_against_diagonal_scan(
    a_ndim: int, b_shape: Sequence[int], dtype: str
) -> list[str]:
    """Why the kernel cannot solve a recurrence, by what both backends know of it.

    **Arguments:**

    - `a_ndim`: how many axes `a` has.
    - `b_shape`: the shape of `b`, `(T, *batch, n)`.
    - `dtype`: the name of the common dtype, `"float32"` for one.
    """
    reasons = []
    if a_ndim != len(b_shape):
        reasons.append("it takes diagonal `a` only, and this one is dense")
    if dtype not in _DTYPES:
        reasons.append(f"it takes {', '.join(_DTYPES)}, and this is {dtype}")
    if max(b_shape[0], math.prod(b_shape[1:])) >= 2**30:
        reasons.append("it takes fewer than 2^30 steps and 2^30 entries in a state")
    return reasons


@dataclasses.dataclass(frozen=True)
class LaneLayout:
    """Where the numbers of one time step of `a` lie.

    A lane is one entry of a state: all axes of `b` but time, flattened. Where axes of
    size 1 in `a` broadcast, lane `l` of `b` has its factor at
    `l // (shared * inner) * inner + l % inner`.

    **Attributes:**

    - `batch`: the batch axes to which `a` must be broadcast before; those that differ
        from its own are written out, which happens only if the axes that broadcast do
        not lie side by side.
    - `lanes`: entries of a step of `a` of that shape.
    - `shared`: how many times in a row `inner` numbers are used.
    - `inner`: how many numbers those are.
    """

    batch: tuple[int, ...]
    lanes: int
    shared: int
    inner: int

    @classmethod
    def of(cls, a_shape: Sequence[int], b_shape: Sequence[int]) -> "LaneLayout":
        """For a diagonal `a` and `b`, by their shapes with time and state."""
        batch = list(a_shape[1:-1])
        inner, shared = a_shape[-1], 1
        place = len(batch) - 1
        axes = list(b_shape[1:-1])
        while place >= 0 and batch[place] == axes[place]:
            inner *= axes[place]
            place -= 1
        while place >= 0 and (batch[place] == 1 or axes[place] == 1):
            shared *= axes[place]
            place -= 1
        batch[: place + 1] = axes[: place + 1]
        lanes = math.prod(batch) * a_shape[-1]
        return cls(tuple(batch), lanes, shared, inner)


@dataclasses.dataclass(frozen=True)
class DiagonalScanPlan:
    """The sizes of the blocks. They depend on shapes alone, and so do all results.

    A program owns `block_l` lanes. If there are lanes enough to fill a device, it
    walks through all times with the state in registers, `block_t` steps at a time.
    Otherwise (`chained`) every program has `block_t` steps and hands on what they do
    to a state, and `group` of them in a row make one link of the chain that the true
    states run along.

    **Attributes:**

    - `block_t`, `block_l`, `group`: powers of 2.
    - `num_warps`, `num_stages`: how Triton compiles: warps of a program, and how many
        blocks are under way from memory while it walks.
    """

    chained: bool
    block_t: int
    block_l: int
    group: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, length: int, lanes: int, *, is_complex: bool) -> "DiagonalScanPlan":
        """The plan for `length` steps of `lanes` entries each.

        The sizes follow from an estimate (see ADR 0008) and have not been measured.
        """
        # A row of 32 numbers is a whole line of the cache.
        block_l = 32
        if interpreted():
            return cls(lanes <= 8 and length > 64, 16, 8, 4, 1, 1)
        # Complex numbers take twice the registers.
        shorter = 2 if is_complex else 1
        # From 256 programs on, there are about two for each processor of large GPUs.
        if math.ceil(lanes / block_l) >= 256 or length <= 256:
            return cls(False, 64 // shorter, block_l, 1, 2, 3)
        return cls(True, 256 // shorter, block_l, 32, 8, 1)

    def chunks(self, length: int) -> int:
        """Into how many programs the time of a lane is cut."""
        return math.ceil(length / self.block_t) if self.chained else 1

    def programs(self, length: int, lanes: int) -> int:
        return self.chunks(length) * math.ceil(lanes / self.block_l)

    def words(self, length: int, lanes: int, *, is_complex: bool) -> int:
        """The 32-bit words of zeros that the programs talk through."""
        if not self.chained:
            return 2
        chunks = self.chunks(length)
        links = math.ceil(chunks / self.group) + 1
        # Two 32-bit words for each number, of which a map has two, or two complex ones.
        return 2 + 2 * (chunks + links) * lanes * (4 if is_complex else 2)

    def meta(self) -> dict[str, int | bool]:
        """The compile-time arguments of the kernel that are a matter of the plan."""
        return {
            "CHAINED": self.chained,
            "BLOCK_T": self.block_t,
            "BLOCK_L": self.block_l,
            "GROUP": self.group,
            "STAGES": self.num_stages,
        }
