"""What the computation of the demo tells the report and the picture."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds that one function takes: to compile, if it is, and to run after that."""

    compilation: float | None
    runs: list[float]

    @property
    def median(self) -> float:
        ordered = sorted(self.runs)
        middle = len(ordered) // 2
        return (ordered[middle] + ordered[~middle]) / 2


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The sequential loop beside DEER.

    `baseline` names what runs one step after the other.
    `failure` is the sentence of the first sequence whose solve was not successful.
    `deviation` is the largest one from the sequential run, and `allowed` what the
    tolerance and rounding account for; relative to the largest entry for gradients.
    """

    sequential: Timing
    deer: Timing
    sweeps: tuple[int, int]
    residual: float
    prefix: int
    deviation: float
    allowed: float
    outputs: tuple[float, float]
    baseline: str
    failure: str = ""

    @property
    def agrees(self) -> bool:
        # Written so that NaN does not agree.
        return self.deviation <= self.allowed


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The state after one sweep, over all sequences."""

    certified: int
    prefix: int
    within: float
    median: float
    largest: float


@dataclasses.dataclass(frozen=True)
class Sweeps:
    """All sweeps, the guess first; `errors` is an array `(sweeps + 1, length)`.

    `errors` belongs to the first sequence: the largest entry of `|z_k - z|` at every
    time, `z` being the states of the sequential run.
    """

    sweeps: list[Sweep]
    errors: Any
    scale: float
