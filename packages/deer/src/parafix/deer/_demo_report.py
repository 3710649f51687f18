"""What the demo prints: tables in plain text, and a bar of progress."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._demo_results import Comparison, Sweeps


_LABEL = 24


class UsageError(Exception):
    """What is wrong with the command line, and the remedy."""


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    amount, unit = seconds, "s"
    if seconds < 1e-3:
        amount, unit = seconds * 1e6, "us"
    elif seconds < 1:
        amount, unit = seconds * 1e3, "ms"
    decimals = 0 if amount >= 100 else 1 if amount >= 10 else 2
    return f"{amount:.{decimals}f} {unit}"


def heading(title: str) -> str:
    return f"\n{title}\n{'-' * len(title)}"


def entry(label: str, text: str) -> str:
    """A label and what is to say about it; further lines are aligned."""
    first, *others = text.splitlines()
    lines = [f"  {label:<{_LABEL}}{first}", *(" " * (_LABEL + 2) + x for x in others)]
    return "\n".join(lines)


def verdict(comparison: Comparison) -> str:
    """How the two times compare, in words."""
    sequential, deer = comparison.sequential.median, comparison.deer.median
    ratio = sequential / deer
    if ratio >= 1:
        return f"DEER is {_times(ratio)} as fast"
    return f"DEER takes {_times(1 / ratio)} as long"


def _times(ratio):
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


def comparison_table(
    comparison: Comparison, length: int, window: int | None, of_gradient: bool
) -> list[str]:
    """The table of one comparison; without a ratio where the results disagree."""

    def row(label, sequential, deer, note=""):
        return f"  {label:<{_LABEL}}{sequential:>12}{deer:>12}   {note}".rstrip()

    sequential, deer = comparison.sequential, comparison.deer
    low, high = comparison.outputs
    fewest, most = comparison.sweeps
    sweeps = f"{most}" if fewest == most else f"{fewest} to {most}"
    repeats = len(deer.runs)
    note = f"median of {repeats} runs" if repeats > 1 else "one run"
    title, compilation = "time", []
    if sequential.compilation is not None and deer.compilation is not None:
        title = "time after compilation"
        times = duration(sequential.compilation), duration(deer.compilation)
        compilation = [row("compile time", *times)]
    lines = [
        row("", "sequential", "DEER", f"sequential: {comparison.baseline}"),
        row(title, duration(sequential.median), duration(deer.median), note),
        *compilation,
    ]
    if comparison.agrees and not comparison.failure:
        ratio = f"{sequential.median / deer.median:.2f}"
        lines.append(row("sequential / DEER", "", ratio, verdict(comparison)))
    lines += [
        row("sweeps", "", sweeps, "" if window is None else "in all windows together"),
        row("residual", "", f"{comparison.residual:.2g}", "1 is the tolerance"),
        row("converged prefix", "", f"{comparison.prefix:,}", f"of {length:,} steps"),
    ]
    # Beside what it is to be compared with.
    if of_gradient:
        note = "relative to the largest entry"
    else:
        note = f"beside outputs from {low:.3g} to {high:.3g}"
    lines.append(row("largest deviation", "", f"{comparison.deviation:.1e}", note))
    return lines


def sweeps_table(sweeps: Sweeps) -> list[str]:
    """One line per sweep."""
    titles = ("sweep", "certified", "correct", "all correct", "median", "largest")
    rows = [titles, ("", "prefix", "prefix", "states", "error", "error")]
    for number, sweep in enumerate(sweeps.sweeps):
        share = f"{100 * sweep.within:.1f} %"
        rows.append(
            (
                "guess" if number == 0 else f"{number}",
                "" if number == 0 else f"{sweep.certified:,}",
                f"{sweep.prefix:,}",
                share,
                f"{sweep.median:.1e}",
                f"{sweep.largest:.1e}",
            )
        )
    return ["  " + "".join(f"{cell:>13}" for cell in row).rstrip() for row in rows]


@contextmanager
def progress(title: str, total: int, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Counts up to `total` on a terminal; each call names what begins."""
    if quiet or not sys.stderr.isatty():
        yield lambda what: None
        return
    from tqdm import tqdm

    # Fixed widths, so that the bar does not jump when another step begins.
    layout = "{desc:<42.42}{bar:24} {n_fmt}/{total_fmt} {elapsed}"
    # It disappears when it is done: the table that follows says the same and more.
    with tqdm(total=total, file=sys.stderr, leave=False, bar_format=layout) as bar:
        begun = 0

        def advance(what):
            nonlocal begun
            bar.set_description_str(f"{title}: {what}", refresh=False)
            # What is over counts, not what begins.
            bar.n, begun = begun, begun + 1
            bar.refresh()

        yield advance
