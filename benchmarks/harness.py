"""Measures contestants side by side, and believes none of them before it has checked.

The harness knows no framework. A program is something to run, something that waits for
the result, and something that turns the result into NumPy arrays; how these are made
from a JAX function is the business of `jax_programs.py`.
"""

import contextlib
import dataclasses
import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import statistics


Answer = Mapping[str, np.ndarray]
# What a contestant tells about itself besides time: "sweeps", "residual", "result", ...
Facts = Mapping[str, float | int | str]


@dataclasses.dataclass(frozen=True)
class Program:
    """Something that is ready to be timed: compiled, with its arguments in place.

    - `run`: does the work once; may return before the device has finished.
    - `wait`: blocks until what `run` returned is there.
    - `answer`: what `run` returned, as named arrays; empty where nothing can be wrong.
    - `facts`: called once, outside the timing.
    - `compile_seconds`: tracing, lowering and compilation, if there is such a thing.
    - `temporary_bytes`: peak of the memory that is neither argument nor result.
    - `fingerprint`: equal for two programs only if they are the same program.
    """

    run: Callable[[], Any]
    wait: Callable[[Any], Any] = lambda output: output
    answer: Callable[[Any], Answer] = lambda output: {}
    facts: Callable[[], Facts] = dict
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    fingerprint: str | None = None


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A name, and how to get its program; `build` is called once and may take long.

    - `required`: whether the run has failed where this one is wrong or missing. It has
        not where that is something to be shown: a method beyond what it is made for, a
        peer that is not installed.
    """

    name: str
    build: Callable[[], Program]
    required: bool = True


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The ratio `time of numerator / time of denominator`, two names of contestants."""

    numerator: str
    denominator: str


@dataclasses.dataclass(frozen=True)
class Case:
    """Contestants that do the same work, and how to tell whether they did it.

    - `group`: geometric means are taken over the cases of a group.
    - `reference`: the right answer, named as in the answers of the contestants.
    - `limit`: how far an answer may be off, relative to the largest entry of the same
        array of the reference. Above it the answer is wrong.
    - `measure`: what that is called: `"residual"` where answers are residuals in units
        of a tolerance, and the reference is zero.
    - `unavailable`: why nothing of this can be measured here ("no GPU"); then nothing
        is built, and every row says so.
    """

    group: str
    name: str
    contestants: Sequence[Contestant]
    comparisons: Sequence[Comparison] = ()
    reference: Callable[[], Answer] = dict
    limit: float = 0.0
    measure: str = "deviation"
    unavailable: str = ""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure.

    - `repeats`: rounds; in each, every contestant runs once.
    - `patience`: how many times `repeats` rounds are added while the spread is big.
    - `spread`: what is big: the distance of the quartiles, relative to the median.
    - `clock`: of the time that passes, or of what the processors of this process spend.
    """

    repeats: int = 15
    patience: int = 2
    spread: float = 0.1
    clock: Callable[[], float] = time.perf_counter


@dataclasses.dataclass
class Measurement:
    """What is known about one contestant in one case."""

    name: str
    required: bool = True
    problem: str | None = None
    deviation: float | None = None
    times: list[float] = dataclasses.field(default_factory=list)
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    fingerprint: str | None = None
    facts: dict[str, float | int | str] = dataclasses.field(default_factory=dict)

    @property
    def correct(self) -> bool:
        return self.problem is None


NOT_MEASURED = "not measured"

Progress = Callable[[str], None]


def measure(case: Case, effort: Effort, progress: Progress) -> list[Measurement]:
    """Check all contestants of a case, then time those that are right, in turns.

    Contestants alternate, one run of each in every round, so that what disturbs the
    machine for a while disturbs all of them. Their order is drawn anew in every round
    (from a fixed seed): always after the same other one, the same program was seen to
    take a tenth longer, for what that one had left in the caches.

    **Arguments:**

    - `case`: what to measure.
    - `effort`: how long.
    - `progress`: called with a word about what comes next: once for the reference, once
        for each contestant, once for each round.

    **Returns:**

    One measurement for each contestant, in order. Those that are wrong, or that raise,
    have no times but a `problem`.
    """
    if case.unavailable:
        # No fault of anybody's: nobody is required.
        problem = f"{NOT_MEASURED}: {case.unavailable}"
        return [Measurement(each.name, False, problem) for each in case.contestants]
    progress("reference")
    reference = case.reference()
    measurements, ready = [], []
    for contestant in case.contestants:
        progress(contestant.name)
        measurement, program = _prepare(contestant, reference, case)
        measurements.append(measurement)
        if program is not None:
            ready.append((measurement, program))
    if ready:
        order = random.Random(0)
        _warm_up(ready)
        for batch in range(1 + effort.patience):
            if batch and not _too_wide(ready, effort.spread):
                break
            _time(ready, effort, order, progress)
        for measurement, program in ready:
            # What was timed must have been right to the end.
            _judge(measurement, program, program.run(), reference, case)
    return measurements


def _prepare(contestant, reference, case):
    """Build, run, and check."""
    measurement = Measurement(contestant.name, contestant.required)
    program = None
    try:
        program = contestant.build()
        program.wait(program.run())
        measurement.compile_seconds = program.compile_seconds
        measurement.temporary_bytes = program.temporary_bytes
        measurement.fingerprint = program.fingerprint
        measurement.facts.update(program.facts())
        _judge(measurement, program, program.run(), reference, case)
    except Exception as error:
        # A contestant that raises is a row of the table, not the end of the run.
        measurement.problem = f"failed: {_first_line(error)}"
    return measurement, program if measurement.correct else None


def _judge(measurement, program, output, reference, case):
    program.wait(output)
    answer = program.answer(output)
    if set(answer) != set(reference):
        measurement.problem = f"wrong: {sorted(set(answer) ^ set(reference))} differ"
        return
    measurement.deviation = deviation(answer, reference)
    result = measurement.facts.get("result", "successful")
    # Written so that NaN is wrong.
    if not measurement.deviation <= case.limit:
        words = f"{case.measure} {measurement.deviation:.1e}"
        measurement.problem = f"wrong: {words}"
    elif result != "successful":
        measurement.problem = f"wrong: {result}"


def deviation(answer: Answer, reference: Answer) -> float:
    """The largest error, relative to the largest entry of its array; NaN for NaN."""
    worst = 0.0
    for name, right in reference.items():
        right = np.asarray(right, np.float64)
        found = np.asarray(answer[name], np.float64)
        if found.shape != right.shape:
            return float("nan")
        if right.size == 0:
            continue
        error = np.max(np.abs(found - right))
        scale = np.max(np.abs(right))
        relative = error / scale if scale > 0 else error
        if not np.isfinite(relative):
            return float("nan")
        worst = max(worst, float(relative))
    return worst


def _time(ready, effort, order, progress):
    clock = effort.clock
    with _no_garbage_collection():
        for _ in range(effort.repeats):
            progress("timing")
            for measurement, program in order.sample(ready, len(ready)):
                start = clock()
                program.wait(program.run())
                measurement.times.append(clock() - start)


def _warm_up(ready):
    # The programs that were built first have been idle while the others compiled.
    for _, program in ready:
        program.wait(program.run())


def _too_wide(ready, spread):
    return any(
        statistics.spread(measurement.times) > spread for measurement, _ in ready
    )


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"
