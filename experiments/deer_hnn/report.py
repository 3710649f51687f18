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
        *("", "a step of the last stage", "all steps", "time of sequential / its"),
        *("last loss", "test loss", "energy off by", "losses apart, early"),
        *("and later", "sweeps", "finished by a loop", "failed"),
    )
    table = []
    for seed, rows in by_seed(record).items():
        loop, steps = rows[LOOP], together(rows)
        for name, row in rows.items():
            early, later = np.split(apart(row, loop), [steps])
            label, _ = LOOKS[name]
            sweeps = row["sweeps"]
            of_deer = any(sweeps)
            total = sum(row["seconds"])
            table.append(
                [
                    f"{label}, seed {seed}",
                    f"{1e3 * median(_last_stage(record, row)):.1f} ms",
                    f"{total:.1f} s",
                    f"{sum(loop['seconds']) / total:.2f}",
                    f"{row['training_losses'][-1]:.2e}",
                    f"{row['test_loss']:.2e}",
                    f"{100 * row['energy_drift']:.1f} %",
                    "" if row is loop else f"{np.max(early):.1e} ({steps} steps)",
                    "" if row is loop or not len(later) else f"{np.max(later):.1e}",
                    f"{median(sweeps):g} ({max(sweeps)} at most)" if of_deer else "",
                    sum(row["finished"]) if of_deer else "",
                    row["failed"] if of_deer else "",
                ]
            )
    lines += markdown(titles, table)
    lines += [
        "",
        "The factor is one of all steps together; the last loss is of all trajectories",
        "for training, the test loss and the energy of those that were not seen, over",
        "the whole time. How far losses are apart is relative to the largest of them:",
        "as long as one rounding does not change the training, and later.",
    ]
    return "\n".join(lines)


def _last_stage(record, row):
    """The seconds of the steps over all points."""
    stages = len(record["config"]["stages"])
    return row["seconds"][-(len(row["seconds"]) // stages) :]


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
        f"A Hamiltonian network of {config['layers']} x {config['hidden']} units "
        f"learns the two-body problem, up to {config['points']:,} steps of Heun's "
        "method: the same training, three times",
    )
    (losses, difference, sweeps), (wall, seconds, orbit) = figure.subplots(2, 3)
    loop = rows[LOOP]
    epochs = np.arange(len(loop["training_losses"]))
    for number, name in enumerate(SHOWN):
        row, (label, colour) = rows[name], LOOKS[name]
        # Curves that coincide: a wide one below, thinner ones above.
        styles = {"color": colour, "linewidth": 5 - 1.6 * number}
        losses.semilogy(epochs, row["training_losses"], label=label, **styles)
        wall.semilogy(clock(row), row["training_losses"], color=colour)
        seconds.plot(1e3 * smooth(row["seconds"]), color=colour)
        orbit.plot(*row["orbit"], **styles)
        if name != LOOP:
            sweeps.plot(row["sweeps"], color=colour, linewidth=0.9)
    orbit.plot(*loop["true_orbit"], ":", color=pictures.GREEN, label="true orbit")
    for name in (CONTROL, "deer, warm start", "deer"):
        label, colour = LOOKS[name]
        values = apart(rows[name], loop)
        shown = np.where(values > 0, values, np.nan)
        difference.semilogy(shown, color=colour, linewidth=0.9, label=label)
    for edge in np.flatnonzero(np.diff(loop["points"][1:])) + 1.5:
        losses.axvline(edge, color=pictures.GREY, linewidth=0.8, linestyle=":")
    for axes, x, y, title in (
        (losses, "epoch", "loss", "Loss; dotted: more points from here"),
        (difference, "step", "of the largest loss", "Distance from sequential losses"),
        (sweeps, "step", "sweeps", "Sweeps of the slowest trajectory"),
        (wall, "seconds of training", "loss", "Loss over wall-clock"),
        (seconds, "step", "ms", "Time of a step (median of 15)"),
        (orbit, "x", "y", "A body of a trajectory not seen"),
    ):
        pictures.tidy(axes, x=x, y=y, title=title)
    for axes in (sweeps, seconds):
        axes.set_ylim(bottom=0)
    orbit.set_aspect("equal", adjustable="datalim")
    losses.legend(frameon=False, fontsize=9)
    difference.legend(frameon=False, fontsize=8, loc="upper left")
    orbit.legend(frameon=False, fontsize=9)
    return pictures.write(figure, path)
