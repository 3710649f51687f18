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
_MOST_FRAMES = 60
# At the end, when nothing moves any more.
_PAUSE = 8


def complaints(record: Record) -> list[str]:
    """Losses that are further from those of the loop than rounding can explain."""
    found = []
    for rows in _by_seed(record).values():
        loop, control = rows[_LOOP], rows[_CONTROL]
        allowed = 1e-3 + 20 * np.max(apart(control, loop))
        for name, row in rows.items():
            # Written so that NaN is wrong.
            if not np.max(apart(row, loop)) <= allowed:
                found.append(
                    f"seed {row['seed']}: {name}: losses differ by "
                    f"{np.max(apart(row, loop)):.1e}, allowed {allowed:.1e}"
                )
    return found


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
        *("test accuracy", "loss apart, at most", "sweeps"),
        *("finished by a loop", "failed"),
    )
    table = []
    for seed, rows in _by_seed(record).items():
        loop = rows[_LOOP]
        for name, row in rows.items():
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
                    f"{np.max(apart(row, loop)):.1e}" if row is not loop else "",
                    f"{median(sweeps):g} ({max(sweeps)} at most)" if of_deer else "",
                    sum(row["finished"]) if of_deer else "",
                    row["failed"] if of_deer else "",
                ]
            )
    lines += markdown(titles, table)
    lines += [
        "",
        "The factor is one of medians over steps; the last loss is of all recordings",
        "for training. How far losses are apart is relative to the largest of them.",
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
        *(12, 7),
        f"A GRU of {config['hidden']} units over {config['length']:,} samples of a "
        f"smartwatch, batches of {config['batch']}: the same training, three times",
    )
    grid = figure.subplots(2, 3)
    (steps, clock, accuracy), (difference, sweeps, seconds) = grid
    loop = rows[_LOOP]
    for number, name in enumerate((_LOOP, "deer", "deer, warm start")):
        row, (label, colour) = rows[name], _LOOKS[name]
        epochs = np.arange(len(row["training_losses"]))
        # Curves that coincide: a wide one below, dashes above.
        styles = {"linewidth": 5 - 1.6 * number, "alpha": 0.9}
        steps.plot(epochs, row["training_losses"], color=colour, label=label, **styles)
        clock.plot(_clock(row), row["training_losses"], color=colour, label=label)
        accuracy.plot(_clock(row), 100 * np.array(row["accuracies"]), color=colour)
        smooth = _smooth(row["seconds"])
        seconds.plot(1e3 * smooth, color=colour)
        if name != _LOOP:
            sweeps.plot(row["sweeps"], color=colour, linewidth=0.9)
    for name in (_CONTROL, "deer, warm start", "deer"):
        label, colour = _LOOKS[name]
        values = apart(rows[name], loop)
        shown = np.where(values > 0, values, np.nan)
        difference.semilogy(shown, color=colour, linewidth=0.9, label=label)
    pictures.tidy(steps, x="epoch", y="training loss", title="Loss over epochs")
    pictures.tidy(
        clock, x="seconds of training", y="training loss", title="Loss over wall-clock"
    )
    pictures.tidy(
        *(accuracy,),
        x="seconds of training",
        y="right (%)",
        title="Recordings of people not seen",
    )
    pictures.tidy(
        *(difference,),
        x="step",
        y="relative to the largest loss",
        title="Distance from the sequential losses",
    )
    pictures.tidy(sweeps, x="step", y="sweeps", title="Sweeps of the slowest recording")
    pictures.tidy(seconds, x="step", y="ms", title="Time of a step (median of 15)")
    sweeps.set_ylim(bottom=0)
    seconds.set_ylim(bottom=0)
    steps.legend(frameon=False, fontsize=9)
    difference.legend(frameon=False, fontsize=8, loc="lower right")
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
    axes.set_xlim(0, 1.03 * end)
    axes.set_ylim(0, 1.05 * max(losses))
    lines = {}
    for name in names:
        label, colour = _LOOKS[name]
        (line,) = axes.plot([], [], color=colour, linewidth=1.8, label=label)
        (dot,) = axes.plot([], [], "o", color=colour, markersize=6)
        lines[name] = (line, dot)
    pictures.tidy(
        axes, x="seconds of training", y="training loss", title="The same training"
    )
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
