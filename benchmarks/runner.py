"""Runs a table: measures its cases, prints them as they come, and makes the record."""

import dataclasses
import datetime
import time
from collections.abc import Callable
from typing import Any

import tqdm

from . import report, results
from .harness import Case, Effort, measure, NOT_MEASURED
from .table import Table


@dataclasses.dataclass(frozen=True)
class Options:
    """What a person asked for on the command line; `None` leaves it to the table."""

    quick: bool = False
    repeats: int | None = None
    patience: int | None = None
    only: str | None = None
    full: bool = False
    processor_time: bool = False

    @property
    def complete(self) -> bool:
        """Whether all cases are measured at full size."""
        return not self.quick and self.only is None

    def effort(self, table: Table) -> Effort:
        effort = Effort(repeats=3, patience=0) if self.quick else table.effort
        given = {"repeats": self.repeats, "patience": self.patience}
        changes: dict[str, Any] = {
            key: value for key, value in given.items() if value is not None
        }
        if self.processor_time:
            changes["clock"] = time.process_time
        return dataclasses.replace(effort, **changes)

    def command(self, name: str) -> str:
        """What to type for the same run."""
        words = ["python -m benchmarks", name]
        if self.quick:
            words.append("--quick")
        if self.full:
            words.append("--full")
        if self.processor_time:
            words.append("--processor-time")
        for option in ("repeats", "patience"):
            value = getattr(self, option)
            if value is not None:
                words.append(f"--{option} {value}")
        if self.only is not None:
            words.append(f"--only '{self.only}'")
        return " ".join(words)


def run_table(
    name: str, table: Table, options: Options, say: Callable[[str], None]
) -> dict[str, Any]:
    """The record of a table; each part of the report goes to `say` once it is known."""
    now = datetime.datetime.now(datetime.UTC)
    record: dict[str, Any] = {
        "format": results.FORMAT,
        "table": name,
        "title": table.title,
        "notes": table.notes,
        "command": options.command(name),
        "date": now.date().isoformat(),
        "quick": options.quick,
        "environment": table.environment(),
        "cases": [],
    }
    say(report.heading_text(record))
    full = table.full if options.full else None
    cases = table.cases(options.quick) if full is None else full()
    cases = [case for case in cases if _wanted(case, options.only)]
    effort = options.effort(table)
    with tqdm.tqdm(total=0, unit="step", desc=name) as bar:
        bar.total = sum(_steps(case, effort) for case in cases)
        for number, case in enumerate(cases, 1):
            done = bar.n

            title = f"{number}/{len(cases)} {case.group}, {case.name}"

            def progress(word, title=title):
                if bar.n >= bar.total:
                    # More rounds than planned, for their spread is big.
                    bar.total += effort.repeats
                bar.set_description_str(f"{title}: {word}")
                bar.update()

            measurements = measure(case, effort, progress)
            record["cases"].append(results.record_case(case, measurements))
            # Rounds that were not needed, or that nobody was left to take.
            bar.update(max(0, done + _steps(case, effort) - bar.n))
            with bar.external_write_mode():
                say(report.case_text(record["cases"][-1]))
    record["means"] = results.geometric_means(record["cases"])
    record["targets"] = _assess(table, record["cases"], options)
    say(report.summary_text(record))
    return record


def _wanted(case: Case, only: str | None) -> bool:
    return only is None or only in f"{case.group}, {case.name}"


def _steps(case: Case, effort: Effort) -> int:
    return 1 + len(case.contestants) + effort.repeats


def _assess(table, cases, options):
    reason = ""
    if not options.complete:
        reason = "not all cases were measured at full size"
    for case in cases:
        for item in case["contestants"]:
            if (item["problem"] or "").startswith(NOT_MEASURED):
                reason = item["problem"]
    if reason:
        return [
            {"text": target.text, "measured": reason, "met": None}
            for target in table.targets
        ]
    targets = []
    for target in table.targets:
        measured, met = target.assess(cases)
        targets.append({"text": target.text, "measured": measured, "met": met})
    return targets


def all_correct(record: dict[str, Any]) -> bool:
    """Whether every contestant was right that has to be."""
    return not any(
        item["problem"] and item["required"]
        for case in record["cases"]
        for item in case["contestants"]
    )
