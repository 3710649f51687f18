"""The table, the picture and the animation of the trainings."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from benchmarks.statistics import median

from .. import pictures
from ..common import heading, markdown, Record


_LOOP = "sequential"
_CONTROL = "one rounding away"
_LOOKS = {
    _LOOP: ("sequential", pictures.BLACK),
    "deer": ("DEER", pictures.BLUE),
    "deer, warm start": ("DEER, warm start", pictures.ORANGE),
    _CONTROL: ("sequential, one rounding away", pictures.GREY),
}
# Of losses that are said to coincide, relative to the largest.
_ALLOWED = 1e-3
_MOST_FRAMES = 60
# At the end, when nothing moves any more.
_PAUSE = 8


def complaints(record: Record) -> list[str]:
    """Losses that leave those of the loop where a rounding does not."""
    found = []
    for rows in _by_seed(record).values():
        steps = together(rows)
        for name, row in rows.items():
            most = np.max(apart(row, rows[_LOOP])[:steps])
            # Written so that NaN is wrong.
            if not most <= _ALLOWED:
                found.append(
                    f"seed {row['seed']}: {name}: losses differ by {most:.1e} within "
                    f"the first {steps} steps, allowed {_ALLOWED:.0e}"
                )
    return found


def together(rows: dict[str, dict[str, Any]]) -> int:
    """For how many steps equal trainings stay together.

    Until one rounding at the start has grown to a tenth of what is allowed; and a bit
    less, since different roundings do not grow at the very same time.
    """
    away = apart(rows[_CONTROL], rows[_LOOP]) > 0.1 * _ALLOWED
    return int(0.9 * np.argmax(away)) if away.any() else len(away)


def apart(row: dict[str, Any], loop: dict[str, Any]) -> np.ndarray:
    """By how much the losses of the steps differ, relative to the largest of them."""
    expected = np.array(loop["losses"], float)
    difference = np.abs(np.array(row["losses"], float) - expected)
    return difference / np.max(np.abs(expected))


def _by_seed(record: Record) -> dict[int, dict[str, dict[str, Any]]]:
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for row in record["rows"]:
        found.setdefault(row["seed"], {})[row["name"]] = row
    # A run that was stopped may lack some.
    return {seed: rows for seed, rows in found.items() if len(rows) == len(_LOOKS)}


def text(record: Record) -> str:
    lines = heading(record)
    titles = (
        *("", "a step", "all steps", "time of sequential / its", "last loss"),
        *("test accuracy", "losses apart, early", "and later", "sweeps"),
        *("finished by a loop", "failed", "exponent, first and last"),
    )
    table = []
    for seed, rows in _by_seed(record).items():
        loop, steps = rows[_LOOP], together(rows)
        for name, row in rows.items():
            early, later = np.split(apart(row, loop), [steps])
            label, _ = _LOOKS[name]
            total = sum(row["seconds"])
            sweeps = row["sweeps"]
            of_deer = any(sweeps)
            table.append(
                [
                    f"{label}, seed {seed}",
                    f"{1e3 * median(row['seconds']):.1f} ms",
                    f"{total:.1f} s",
                    f"{median(loop['seconds']) / median(row['seconds']):.2f}",
                    f"{row['training_losses'][-1]:.4f}",
                    f"{100 * row['accuracies'][-1]:.1f} %",
                    "" if row is loop else f"{np.max(early):.1e} ({steps} steps)",
                    "" if row is loop or not len(later) else f"{np.max(later):.1e}",
                    f"{median(sweeps):g} ({max(sweeps)} at most)" if of_deer else "",
                    sum(row["finished"]) if of_deer else "",
                    row["failed"] if of_deer else "",
                    f"{row['exponents'][0]:.3f}, {row['exponents'][-1]:.3f}",
                ]
            )
    lines += markdown(titles, table)
    lines += [
        "",
        "The factor is one of medians over steps; the last loss is of all recordings",
        "for training. How far losses are apart is relative to the largest of them:",
        "as long as one rounding does not change the training, and later. The exponent",
        "is the largest of the recordings not seen, before the training and after it.",
    ]
    return "\n".join(lines)


def draw(record: Record, stem: pathlib.Path) -> list[pathlib.Path]:
    """The picture, and the animation of the losses over wall-clock time."""
    by_seed = _by_seed(record)
    if not by_seed:
        return []
    rows = by_seed[min(by_seed)]
    return [
        _picture(record["config"], rows, stem.with_suffix(".png")),
        _animation(rows, stem.with_suffix(".gif")),
    ]


def _clock(row: dict[str, Any]) -> np.ndarray:
    """Seconds of training before the first epoch and after each."""
    times = np.concatenate([[0], np.cumsum(row["seconds"])])
    epochs = len(row["training_losses"]) - 1
    return times[np.linspace(0, len(times) - 1, epochs + 1).round().astype(int)]


def _picture(config, rows, path):
    figure = pictures.figure(
        *(15, 7),
        f"A GRU of {config['hidden']} units over {config['length']:,} samples of a "
        f"smartwatch, batches of {config['batch']}: the same training, three times",
    )
    grid = figure.subplots(2, 4)
    (losses, difference, exponents, sweeps), (clock, accuracy, seconds, left) = grid
    loop = rows[_LOOP]
    epochs = np.arange(len(loop["training_losses"]))
    for number, name in enumerate((_LOOP, "deer", "deer, warm start")):
        row, (label, colour) = rows[name], _LOOKS[name]
        # Curves that coincide: a wide one below, thinner ones above.
        styles = {"color": colour, "linewidth": 5 - 1.6 * number}
        losses.plot(epochs, row["training_losses"], label=label, **styles)
        exponents.plot(epochs, row["exponents"], **styles)
        clock.plot(_clock(row), row["training_losses"], color=colour)
        accuracy.plot(_clock(row), 100 * np.array(row["accuracies"]), color=colour)
        seconds.plot(1e3 * _smooth(row["seconds"]), color=colour)
        if name != _LOOP:
            sweeps.plot(row["sweeps"], color=colour, linewidth=0.9)
            left.plot(row["finished"], color=colour, linewidth=0.9)
    for name in (_CONTROL, "deer, warm start", "deer"):
        label, colour = _LOOKS[name]
        values = apart(rows[name], loop)
        shown = np.where(values > 0, values, np.nan)
        difference.semilogy(shown, color=colour, linewidth=0.9, label=label)
    exponents.axhline(0, color=pictures.BLACK, linewidth=0.8)
    for axes, x, y, title in (
        (losses, "epoch", "training loss", "Loss over epochs"),
        (difference, "step", "of the largest loss", "Distance from sequential losses"),
        (exponents, "epoch", "1 / step", "Lyapunov exponent, largest"),
        (sweeps, "step", "sweeps", "Sweeps of the slowest recording"),
        (clock, "seconds of training", "training loss", "Loss over wall-clock"),
        (accuracy, "seconds of training", "right (%)", "Recordings not seen"),
        (seconds, "step", "ms", "Time of a step (median of 15)"),
        (left, "step", "recordings of a batch", "Finished by a loop"),
    ):
        pictures.tidy(axes, x=x, y=y, title=title)
    for axes in (sweeps, seconds, left):
        axes.set_ylim(bottom=0)
    losses.legend(frameon=False, fontsize=9)
    difference.legend(frameon=False, fontsize=8, loc="upper left")
    return pictures.write(figure, path)


def _smooth(values: list[float], width: int = 15) -> np.ndarray:
    """Running medians."""
    padded = np.pad(np.array(values), width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


def _animation(rows, path):
    names = (_LOOP, "deer", "deer, warm start")
    end = max(_clock(rows[name])[-1] for name in names)
    # No more than there is to see.
    moving = min(2 * len(rows[_LOOP]["training_losses"]), _MOST_FRAMES - _PAUSE)
    figure = pictures.figure(6.4, 3.8)
    axes = figure.subplots()
    losses = [loss for name in names for loss in rows[name]["training_losses"]]
    title = "The same training: loss over wall-clock"
    axes.set_xlim(0, 1.03 * end)
    axes.set_ylim(0, 1.05 * max(losses))
    lines = {}
    for name in names:
        label, colour = _LOOKS[name]
        (line,) = axes.plot([], [], color=colour, linewidth=1.8, label=label)
        (dot,) = axes.plot([], [], "o", color=colour, markersize=6)
        lines[name] = (line, dot)
    pictures.tidy(axes, x="seconds of training", y="training loss", title=title)
    axes.legend(frameon=False, loc="upper right")

    def show(frame):
        now = end * min(1.0, frame / moving)
        for name, (line, dot) in lines.items():
            clock = _clock(rows[name])
            last = min(now, clock[-1])
            height = np.interp(last, clock, rows[name]["training_losses"])
            past = clock <= last
            curve = np.array(rows[name]["training_losses"])[past]
            line.set_data([*clock[past], last], [*curve, height])
            dot.set_data([last], [height])
        return []

    path.parent.mkdir(parents=True, exist_ok=True)
    animation = FuncAnimation(figure, show, frames=moving + _PAUSE)
    animation.save(path, writer=PillowWriter(fps=12), dpi=100)
    return path
