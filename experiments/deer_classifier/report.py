"""The table, the picture and the animation of the trainings."""

import pathlib

import numpy as np

from benchmarks.statistics import median

from .. import pictures
from ..common import heading, markdown, Record
from ..training_report import (
    animate,
    apart,
    by_seed,
    clock,
    complaints as complaints,
    CONTROL,
    LOOKS,
    LOOP,
    SHOWN,
    smooth,
    together,
)


def text(record: Record) -> str:
    lines = heading(record)
    titles = (
        *("", "a step", "all steps", "time of sequential / its", "last loss"),
        *("test accuracy", "losses apart, early", "and later", "sweeps"),
        *("finished by a loop", "failed", "exponent, first and last"),
    )
    table = []
    for seed, rows in by_seed(record).items():
        loop, steps = rows[LOOP], together(rows)
        for name, row in rows.items():
            early, later = np.split(apart(row, loop), [steps])
            label, _ = LOOKS[name]
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
    seeds = by_seed(record)
    if not seeds:
        return []
    rows = seeds[min(seeds)]
    return [
        _picture(record["config"], rows, stem.with_suffix(".png")),
        animate(rows, stem.with_suffix(".gif")),
    ]


def _picture(config, rows, path):
    figure = pictures.figure(
        *(15, 7),
        f"A GRU of {config['hidden']} units over {config['length']:,} samples of a "
        f"smartwatch, batches of {config['batch']}: the same training, three times",
    )
    grid = figure.subplots(2, 4)
    (losses, difference, exponents, sweeps), (wall, accuracy, seconds, left) = grid
    loop = rows[LOOP]
    epochs = np.arange(len(loop["training_losses"]))
    for number, name in enumerate(SHOWN):
        row, (label, colour) = rows[name], LOOKS[name]
        # Curves that coincide: a wide one below, thinner ones above.
        styles = {"color": colour, "linewidth": 5 - 1.6 * number}
        losses.plot(epochs, row["training_losses"], label=label, **styles)
        exponents.plot(epochs, row["exponents"], **styles)
        wall.plot(clock(row), row["training_losses"], color=colour)
        accuracy.plot(clock(row), 100 * np.array(row["accuracies"]), color=colour)
        seconds.plot(1e3 * smooth(row["seconds"]), color=colour)
        if name != LOOP:
            sweeps.plot(row["sweeps"], color=colour, linewidth=0.9)
            left.plot(row["finished"], color=colour, linewidth=0.9)
    for name in (CONTROL, "deer, warm start", "deer"):
        label, colour = LOOKS[name]
        values = apart(rows[name], loop)
        shown = np.where(values > 0, values, np.nan)
        difference.semilogy(shown, color=colour, linewidth=0.9, label=label)
    exponents.axhline(0, color=pictures.BLACK, linewidth=0.8)
    for axes, x, y, title in (
        (losses, "epoch", "training loss", "Loss over epochs"),
        (difference, "step", "of the largest loss", "Distance from sequential losses"),
        (exponents, "epoch", "1 / step", "Lyapunov exponent, largest"),
        (sweeps, "step", "sweeps", "Sweeps of the slowest recording"),
        (wall, "seconds of training", "training loss", "Loss over wall-clock"),
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
