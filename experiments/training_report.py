"""What reports of trainings side by side share."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from . import pictures
from .common import Record


Row = dict[str, Any]
# Name -> label and colour, of all contestants.
Looks = Mapping[str, tuple[str, str]]

LOOP = "sequential"
CONTROL = "one rounding away"
LOOKS: Looks = {
    LOOP: ("sequential", pictures.BLACK),
    "deer": ("DEER", pictures.BLUE),
    "deer, warm start": ("DEER, warm start", pictures.ORANGE),
    CONTROL: ("sequential, one rounding away", pictures.GREY),
}
# Those that are worth a look; the control is only to compare with.
SHOWN = (LOOP, "deer", "deer, warm start")
# Of losses that are said to coincide, relative to the largest.
ALLOWED = 1e-3
_MOST_FRAMES = 60
# At the end, when nothing moves any more.
_PAUSE = 8


def complaints(record: Record) -> list[str]:
    """Losses that leave those of the loop where a rounding does not."""
    found = []
    for rows in by_seed(record).values():
        steps = together(rows)
        for name, row in rows.items():
            most = np.max(apart(row, rows[LOOP])[:steps])
            # Written so that NaN is wrong.
            if not most <= ALLOWED:
                found.append(
                    f"seed {row['seed']}: {name}: losses differ by {most:.1e} within "
                    f"the first {steps} steps, allowed {ALLOWED:.0e}"
                )
    return found


def together(rows: Mapping[str, Row]) -> int:
    """For how many steps equal trainings stay together.

    Until one rounding at the start has grown to a tenth of what is allowed; and a bit
    less, since different roundings do not grow at the very same time.
    """
    away = apart(rows[CONTROL], rows[LOOP]) > 0.1 * ALLOWED
    return int(0.9 * np.argmax(away)) if away.any() else len(away)


def apart(row: Row, loop: Row) -> np.ndarray:
    """By how much the losses of the steps differ, relative to the largest of them."""
    expected = np.array(loop["losses"], float)
    difference = np.abs(np.array(row["losses"], float) - expected)
    return difference / np.max(np.abs(expected))


def by_seed(record: Record) -> dict[int, dict[str, Row]]:
    """The rows of each seed by name; a seed that lacks some is left out."""
    found: dict[int, dict[str, Row]] = {}
    for row in record["rows"]:
        found.setdefault(row["seed"], {})[row["name"]] = row
    # A run that was stopped may lack some.
    return {seed: rows for seed, rows in found.items() if len(rows) == len(LOOKS)}


def clock(row: Row) -> np.ndarray:
    """Seconds of training before the first epoch and after each."""
    times = np.concatenate([[0], np.cumsum(row["seconds"])])
    epochs = len(row["training_losses"]) - 1
    return times[np.linspace(0, len(times) - 1, epochs + 1).round().astype(int)]


def smooth(values: Sequence[float], width: int = 15) -> np.ndarray:
    """Running medians."""
    padded = np.pad(np.array(values), width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


def animate(rows: Mapping[str, Row], path: pathlib.Path) -> pathlib.Path:
    """The losses over wall-clock time, as they were seen in training."""
    end = max(clock(rows[name])[-1] for name in SHOWN)
    # No more than there is to see.
    moving = min(2 * len(rows[LOOP]["training_losses"]), _MOST_FRAMES - _PAUSE)
    figure = pictures.figure(6.4, 3.8)
    axes = figure.subplots()
    losses = [loss for name in SHOWN for loss in rows[name]["training_losses"]]
    axes.set_xlim(0, 1.03 * end)
    axes.set_ylim(0, 1.05 * max(losses))
    lines = {}
    for name in SHOWN:
        label, colour = LOOKS[name]
        (line,) = axes.plot([], [], color=colour, linewidth=1.8, label=label)
        (dot,) = axes.plot([], [], "o", color=colour, markersize=6)
        lines[name] = (line, dot)
    title = "The same training: loss over wall-clock"
    pictures.tidy(axes, x="seconds of training", y="training loss", title=title)
    axes.legend(frameon=False, loc="upper right")

    def show(frame):
        now = end * min(1.0, frame / moving)
        for name, (line, dot) in lines.items():
            seconds = clock(rows[name])
            last = min(now, seconds[-1])
            height = np.interp(last, seconds, rows[name]["training_losses"])
            past = seconds <= last
            curve = np.array(rows[name]["training_losses"])[past]
            line.set_data([*seconds[past], last], [*curve, height])
            dot.set_data([last], [height])
        return []

    path.parent.mkdir(parents=True, exist_ok=True)
    animation = FuncAnimation(figure, show, frames=moving + _PAUSE)
    animation.save(path, writer=PillowWriter(fps=12), dpi=100)
    return path
