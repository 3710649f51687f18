"""The record of a run: what is written to JSON, and read back for documents.

A record names versions and the kind of device, but no host, no person and no folder.
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from . import statistics
from .harness import Case, Measurement


FOLDER = pathlib.Path(__file__).parent / "results"
FORMAT = 1


def record_case(case: Case, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """One case with all that was measured in it; times in seconds."""
    by_name = {item.name: item for item in measurements}
    ratios = []
    for comparison in case.comparisons:
        numerator = by_name[comparison.numerator]
        denominator = by_name[comparison.denominator]
        # A wrong answer has no speed.
        if not (numerator.correct and denominator.correct):
            continue
        ratio = statistics.ratio(numerator.times, denominator.times)
        ratios.append(
            {
                "numerator": numerator.name,
                "denominator": denominator.name,
                "medians": ratio.medians,
                "minima": ratio.minima,
                "interval": list(ratio.interval),
                "noise": ratio.noise,
                "same_program": numerator.fingerprint is not None
                and numerator.fingerprint == denominator.fingerprint,
            }
        )
    return {
        "group": case.group,
        "name": case.name,
        "limit": case.limit,
        "contestants": [
            _record_measurement(item, case.measure) for item in measurements
        ],
        "ratios": ratios,
    }


def _record_measurement(item: Measurement, measure: str) -> dict[str, Any]:
    timed = item.correct and item.times
    return {
        "name": item.name,
        "required": item.required,
        "problem": item.problem,
        "deviation": None,
        measure: _finite(item.deviation),
        "median": statistics.median(item.times) if timed else None,
        "quartiles": list(statistics.quartiles(item.times)) if timed else None,
        "minimum": min(item.times) if timed else None,
        "compile_seconds": item.compile_seconds,
        "temporary_bytes": item.temporary_bytes,
        **{key: _finite(value) for key, value in item.facts.items()},
        "fingerprint": item.fingerprint,
        "times": [round(value, 9) for value in item.times] if timed else [],
    }


def _finite(value):
    # JSON has no NaN and no infinity.
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


def geometric_means(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each group and comparison: the geometric mean over the cases that have it."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in records:
        for ratio in record["ratios"]:
            key = (record["group"], ratio["numerator"], ratio["denominator"])
            found.setdefault(key, []).append(ratio)
    return [
        {
            "group": group,
            "numerator": numerator,
            "denominator": denominator,
            "medians": statistics.geometric_mean([x["medians"] for x in ratios]),
            "minima": statistics.geometric_mean([x["minima"] for x in ratios]),
            "cases": len(ratios),
            "of": sum(record["group"] == group for record in records),
        }
        for (group, numerator, denominator), ratios in found.items()
    ]


def default_path(record: dict[str, Any]) -> pathlib.Path:
    """`results/<table>-<device>.json`."""
    device = record["environment"]["device"]
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return FOLDER / f"{record['table']}-{slug}.json"


def save(record: dict[str, Any], path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    # One line for a list of numbers: a thousand lines of times are read by nobody.
    text = re.sub(
        r"\[\s+([^\[\]{}\"]*?)\s+\]",
        lambda match: "[" + re.sub(r"\s+", " ", match.group(1)) + "]",
        text,
    )
    path.write_text(text + "\n", "utf-8")


def load(path: pathlib.Path) -> dict[str, Any]:
    """A record as written by `save`; `ValueError` for any other file."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path} is no result of `python -m benchmarks`.")
    return record
