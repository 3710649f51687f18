"""Records as text for a terminal, and as Markdown for documents."""

from collections.abc import Mapping, Sequence
from typing import Any


Record = Mapping[str, Any]

# Heading, and the words for one contestant. Columns that are empty in all rows are left
# out.
_COLUMNS = (
    ("median", lambda item: duration(item["median"])),
    ("quartiles", lambda item: _range(item["quartiles"])),
    ("min", lambda item: duration(item["minimum"])),
    ("sweeps", lambda item: _plain(item.get("sweeps"))),
    ("evaluations", lambda item: _plain(item.get("evaluations"))),
    ("products", lambda item: _plain(item.get("products"))),
    ("tolerance", lambda item: _number(item.get("tolerance"))),
    ("residual", lambda item: _number(item.get("residual"))),
    ("deviation", lambda item: _number(item["deviation"]) if item["deviation"] else ""),
    ("must move", lambda item: _memory(item.get("bytes"))),
    ("rate", lambda item: _rate(item)),
    ("memory", lambda item: _memory(item["temporary_bytes"])),
    ("compiled in", lambda item: duration(item["compile_seconds"])),
    ("loads", lambda item: item.get("loads", "")),
    ("result", lambda item: item["problem"] or item.get("result", "")),
)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} us"


def _range(pair):
    return "" if pair is None else f"{duration(pair[0])} .. {duration(pair[1])}"


def _plain(value):
    return "" if value is None else str(value)


def _number(value):
    return f"{value:.1e}" if isinstance(value, float) else _plain(value)


def _memory(count):
    return "" if count is None else f"{count / 2**20:.2f} MiB"


def _rate(item):
    if not (item.get("bytes") and item["median"]):
        return ""
    return f"{item['bytes'] / item['median'] / 1e9:.0f} GB/s"


def _rows(items: Sequence[Record]) -> list[list[str]]:
    """A heading and a row for each contestant."""
    columns = [[heading, *(cell(item) for item in items)] for heading, cell in _COLUMNS]
    columns = [column for column in columns if any(column[1:])]
    names = ["", *(item["name"] for item in items)]
    return [list(row) for row in zip(names, *columns, strict=True)]


def _ratio_words(ratio: Record) -> str:
    lower, upper = ratio["interval"]
    words = f"{ratio['medians']:.2f}  (95 %: {lower:.2f} to {upper:.2f})"
    if ratio["noise"]:
        words += ", within noise"
    if ratio["same_program"]:
        words += ", the same program"
    return words


def _wide(items: Sequence[Record], limit: float = 0.2) -> list[str]:
    """The contestants whose quartiles are far apart."""
    return [
        item["name"]
        for item in items
        if item["median"]
        and item["quartiles"][1] - item["quartiles"][0] > limit * item["median"]
    ]


def case_text(record: Record) -> str:
    """One case: a row for each contestant, then the ratios."""
    lines = [f"{record['group']}, {record['name']}"]
    rows = _rows(record["contestants"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(("  " + "  ".join(cells)).rstrip())
    for ratio in record["ratios"]:
        names = f"{ratio['numerator']} / {ratio['denominator']}"
        lines.append(f"  {names}: {_ratio_words(ratio)}")
    noisy = _wide(record["contestants"])
    if noisy:
        lines.append(f"  noisy (quartiles more than 20 % apart): {', '.join(noisy)}")
    return "\n".join(lines) + "\n"


def heading_text(record: Record) -> str:
    lines = [f"{record['table']}: {record['title']}", _environment(record)]
    return "\n".join(lines) + "\n"


def _environment(record: Record) -> str:
    found = record["environment"]
    versions = ", ".join(f"{key} {value}" for key, value in found["versions"].items())
    return (
        f"{found['device']} ({found['processor']}, {found['cores']} cores, load "
        f"{found['load']} at the start), Python {found['python']}, {versions}"
    )


def summary_text(record: Record) -> str:
    """Geometric means over the cases, and the targets."""
    lines = []
    if _means(record):
        lines.append("geometric means")
        lines += [f"  {words}" for words in map(_mean_words, _means(record))]
    if record["targets"]:
        lines.append("targets")
        lines += [f"  {words}" for words in map(_target_words, record["targets"])]
    return "\n".join(lines) + "\n" if lines else ""


def _means(record: Record) -> list[Record]:
    # One case is its own mean.
    return [mean for mean in record["means"] if mean["of"] > 1]


def _mean_words(mean: Record) -> str:
    words = (
        f"{mean['group']}, {mean['numerator']} / {mean['denominator']}: "
        f"{mean['medians']:.2f} (by minima {mean['minima']:.2f})"
    )
    if mean["cases"] < mean["of"]:
        words += f", over {mean['cases']} of {mean['of']} cases: the others are wrong"
    return words


def _target_words(target: Record) -> str:
    if target["met"] is None:
        return f"{target['text']}: not assessed, {target['measured']}"
    met = "met" if target["met"] else "NOT MET"
    return f"{target['text']}: {met}, {target['measured']}"


def markdown(record: Record) -> str:
    """All of a record, for a document."""
    lines = [
        f"### {record['table']}: {record['title']}",
        "",
        record["notes"],
        "",
        f"Measured on {record['date']} by `{record['command']}` on "
        f"{_environment(record)}.",
    ]
    for case in record["cases"]:
        rows = _rows(case["contestants"])
        lines += [
            "",
            f"**{case['group']}, {case['name']}**",
            "",
            _markdown_row(rows[0]),
        ]
        lines.append("|" + " --- |" * len(rows[0]))
        lines += map(_markdown_row, rows[1:])
        if case["ratios"]:
            lines.append("")
        lines += [
            f"- {ratio['numerator']} / {ratio['denominator']}: {_ratio_words(ratio)}"
            for ratio in case["ratios"]
        ]
    for title, words in (
        ("Geometric means", list(map(_mean_words, _means(record)))),
        ("Targets", list(map(_target_words, record["targets"]))),
    ):
        if words:
            lines += ["", f"{title}:", "", *(f"- {line}" for line in words)]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
