"""What a table is: cases, how to read them, and what they are held against."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .harness import Case, Effort
from .statistics import geometric_mean


Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Target:
    """A promise that a table is held against.

    `assess` gets the cases as recorded (see `results.py`), and returns what was
    measured, in words, and whether the promise is met. It must not be content with less
    than all cases: a contestant that was wrong in one of them has met nothing.
    """

    text: str
    assess: Callable[[Sequence[Record]], tuple[str, bool]]


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of `python -m benchmarks`.

    - `title`: a sentence.
    - `notes`: what a reader must know to read it, in sentences.
    - `cases`: called with whether the run is a quick one, in which sizes are small.
    - `targets`: assessed when all cases were measured at full size.
    - `environment`: versions and device, for the record.
    - `effort`: how long to measure, where the caller does not say.
    - `full`: more cases, for who has hours.
    """

    title: str
    notes: str
    cases: Callable[[bool], Iterable[Case]]
    targets: Sequence[Target]
    environment: Callable[[], dict[str, Any]]
    effort: Effort = dataclasses.field(default_factory=Effort)
    full: Callable[[], Iterable[Case]] | None = None


def of_group(records: Sequence[Record], group: str) -> list[Record]:
    return [record for record in records if record["group"] == group]


def contestant(record: Record, name: str) -> Record:
    """What was recorded about one contestant of a case."""
    (found,) = (item for item in record["contestants"] if item["name"] == name)
    return found


def comparison(record: Record, numerator: str, denominator: str) -> Record | None:
    """What was recorded about a ratio; `None` if one of the two was wrong."""
    for item in record["ratios"]:
        if (item["numerator"], item["denominator"]) == (numerator, denominator):
            return item
    return None


def faster(group: str, slow: str, fast: str, at_least: float) -> Target:
    """`fast` takes at most `1 / at_least` of the time of `slow`, in geometric mean."""

    def assess(records):
        ratios, missing = _comparisons(records, group, slow, fast)
        if missing:
            return missing, False
        mean = geometric_mean([ratio["medians"] for ratio in ratios])
        minima = geometric_mean([ratio["minima"] for ratio in ratios])
        return f"{mean:.2f} times (by minima {minima:.2f})", mean >= at_least

    return Target(
        f"{group}: {fast} at least {at_least:g} times faster than {slow} "
        "(geometric mean)",
        assess,
    )


def no_slower(group: str, ours: str, theirs: str, at_most: float) -> Target:
    """`ours` takes at most `at_most` times the time of `theirs`, in every case.

    Where both compile to the same program, what is measured is the noise, and the
    promise is met.
    """

    def assess(records):
        ratios, missing = _comparisons(records, group, ours, theirs)
        if missing:
            return missing, False
        worst = max(ratio["medians"] for ratio in ratios)
        same = sum(ratio["same_program"] for ratio in ratios)
        met = all(
            ratio["same_program"] or ratio["medians"] <= at_most for ratio in ratios
        )
        words = (
            f"{worst:.2f} at worst; the same program in {same} of {len(ratios)} cases"
        )
        return words, met

    percent = round((at_most - 1) * 100)
    return Target(
        f"{group}: {ours} within {percent} % of {theirs} in every case", assess
    )


def unbeaten(
    group: str, ours: str, others: Sequence[str], twins: tuple[str, str]
) -> Target:
    """Nobody is faster than `ours` by more than the noise, in any case.

    The noise of a case is what two copies of one program, `twins`, are apart in it: the
    further end of the interval of their ratio. `ours` is beaten if all of the interval
    of its ratio lies beyond. Who is wrong in a case beats nobody there, and neither
    does who is the same program; but `ours` and both twins have to be right.
    """

    def assess(records):
        beaten, worst, count = [], 0.0, 0
        for record in of_group(records, group):
            twin = comparison(record, *twins)
            if twin is None or contestant(record, ours)["problem"]:
                return f"{record['name']}: {ours} or a twin was wrong", False
            lower, upper = twin["interval"]
            noise = max(upper, 1 / lower)
            for other in others:
                ratio = comparison(record, ours, other)
                if ratio is None or ratio["same_program"]:
                    continue
                count += 1
                worst = max(worst, ratio["medians"] / noise)
                if ratio["interval"][0] > noise:
                    beaten.append(
                        f"{record['name']} by {other} ({ratio['medians']:.2f})"
                    )
        words = f"beaten in {len(beaten)} of {count} comparisons"
        if count:
            words += f", {worst:.2f} times the noise at worst"
        return "; ".join([words, *beaten]), count > 0 and not beaten

    return Target(f"{group}: nobody beats {ours} by more than noise", assess)


def _comparisons(records, group, numerator, denominator):
    """The ratios of a group, and words about those that are missing."""
    records = of_group(records, group)
    found = [comparison(record, numerator, denominator) for record in records]
    ratios = [ratio for ratio in found if ratio is not None]
    if ratios and len(ratios) == len(records):
        return ratios, ""
    missing = len(records) - len(ratios)
    return ratios, f"no ratio in {missing} of {len(records)} cases"


def lighter(case: str, name: str, mebibytes: float) -> Target:
    """`name` needs less than so much temporary memory."""

    def assess(records):
        (record,) = (record for record in records if record["name"] == case)
        found = contestant(record, name)
        if found["problem"]:
            return found["problem"], False
        if found["temporary_bytes"] is None:
            return "not reported by this device", False
        used = found["temporary_bytes"] / 2**20
        return f"{used:.1f} MiB", used < mebibytes

    return Target(f"{case}: {name} below {mebibytes:g} MiB", assess)


def share(case: str, ours: str, theirs: str, at_most: float) -> Target:
    """`ours` needs at most so much of the temporary memory of `theirs`."""

    def assess(records):
        (record,) = (record for record in records if record["name"] == case)
        found = [contestant(record, name) for name in (ours, theirs)]
        missing = _without_memory(found)
        if missing:
            return missing, False
        small, large = (item["temporary_bytes"] for item in found)
        words = f"{small / 2**20:.2f} of {large / 2**20:.2f} MiB"
        return words, small <= at_most * large

    return Target(
        f"{case}: {ours} in at most {at_most:g} of the memory of {theirs}", assess
    )


def constant_memory(group: str, name: str) -> Target:
    """`name` needs the same temporary memory in every case of a group, to the byte."""

    def assess(records):
        found = [contestant(record, name) for record in of_group(records, group)]
        missing = _without_memory(found)
        if missing or not found:
            return missing or "no case", False
        used = [item["temporary_bytes"] for item in found]
        words = ", ".join(f"{count / 2**10:.1f}" for count in used)
        return f"{words} KiB", len(used) > 1 and min(used) == max(used)

    return Target(f"{group}: {name} in the same memory in every case", assess)


def _without_memory(items):
    """Words about the first that was wrong, or whose memory is unknown."""
    for item in items:
        if item["problem"]:
            return f"{item['name']}: {item['problem']}"
        if item["temporary_bytes"] is None:
            return "not reported by this device"
    return ""


def solved(names: Sequence[str]) -> Target:
    """Each of `names` is right in every case."""

    def assess(records):
        wrong = [
            f"{record['name']}, {name}: {contestant(record, name)['problem']}"
            for record in records
            for name in names
            if contestant(record, name)["problem"]
        ]
        return "; ".join(wrong) or f"all {len(records)}", bool(records) and not wrong

    return Target(f"every case solved by {', '.join(names)}", assess)
