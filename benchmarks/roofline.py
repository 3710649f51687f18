"""The diagonal scan held against the bandwidth of a copy: what both backends share."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from .table import comparison, faster, of_group, Target


FORWARD = "forward"
GRADIENT = "forward and backward"

KERNEL = "parafix, triton"
COPY = "a copy of as many bytes"

# (length, lanes): a batch of 8 with 1536 channels, and a long sequence of few.
SIZES = ((65536, 8 * 1536), (1048576, 128))
# What must be moved, in arrays of the size of `b`. Forward `a` and `b` are read and `x`
# is written; backward `a`, `x` and the cotangents of `x` are read and those of `a` and
# of `b` are written.
ARRAYS = {FORWARD: 3, GRADIENT: 8}
LANES_CHECKED = 16


def reference(
    a: np.ndarray, b: np.ndarray, g: np.ndarray, group: str
) -> dict[str, np.ndarray]:
    """States and cotangents of some lanes, in float64, one step after the other."""
    a, b, g = (np.asarray(x, np.float64) for x in (a, b, g))
    x = np.zeros_like(b)
    state = np.zeros_like(b[0])
    for t in range(len(b)):
        state = x[t] = a[t] * state + b[t]
    if group == FORWARD:
        return {"x": x}
    of_a, of_b = np.zeros_like(a), np.zeros_like(b)
    cotangent = np.zeros_like(b[0])
    for t in reversed(range(len(b))):
        cotangent = of_b[t] = cotangent + g[t]
        of_a[t] = cotangent * (x[t - 1] if t else 0)
        cotangent = a[t] * cotangent
    return {"x": x, "of a": of_a, "of b": of_b}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a case asks for."""

    length: int
    lanes: int
    group: str

    @property
    def bytes(self) -> int:
        return ARRAYS[self.group] * self.length * self.lanes * 4

    def facts(self) -> Mapping[str, int]:
        return {"bytes": self.bytes}


def of_bandwidth(group: str, fraction: float) -> Target:
    """The kernel moves what must be moved at so much of the rate of a copy."""

    def assess(records):
        found = [
            comparison(record, COPY, KERNEL) for record in of_group(records, group)
        ]
        if None in found or not found:
            return "not every case was right", False
        worst = min(ratio["medians"] for ratio in found)
        return f"{worst:.0%} at worst", worst >= fraction

    return Target(
        f"{group}: {KERNEL} at {fraction:.0%} of the bandwidth of a copy or more, in "
        "every case",
        assess,
    )


def targets(associative: str, peer: str | None = None) -> list[Target]:
    held = [of_bandwidth(FORWARD, 0.7), of_bandwidth(GRADIENT, 0.6)]
    for group in (FORWARD, GRADIENT):
        held.append(faster(group, associative, KERNEL, 3))
        if peer is not None:
            held.append(faster(group, peer, KERNEL, 1))
    return held


NOTES = (
    "`a` and `b` are arrays `(T, lanes)` in float32. `must move` is what any program "
    "has to read and to write; `rate` is that by the median time, so a program that "
    "moves more has a rate below its bandwidth. The copy is measured in the same "
    "rounds: `copy / kernel` is the fraction of its bandwidth that the kernel reaches. "
    f"{LANES_CHECKED} lanes of every answer are compared with a loop in float64."
)
