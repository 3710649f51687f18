"""The table and the picture of sweeps by exponent."""

import math
import pathlib
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from .. import pictures
from ..common import heading, markdown, Record


_SOLVERS = {
    "deer": ("DEER", pictures.BLUE),
    "elk": ("ELK", pictures.GREEN),
    "quasi-deer": ("quasi-DEER", pictures.ORANGE),
    "jacobi": ("Jacobi", pictures.PURPLE),
}
_MARKERS = {
    "successful": "o",
    "ill_conditioned": "^",
    "max_steps_reached": "X",
    "stalled": "s",
    "nonfinite": "P",
    "diverged": "D",
}
_EDGES = (-math.inf, -0.5, -0.2, -0.1, -0.05, 0.0, math.inf)
_EPS = 2.0**-52


def complaints(record: Record) -> list[str]:
    """Every solve that says it is successful and is not what the loop gives."""
    found = []
    for row in record["rows"]:
        if row["result"] != "successful":
            continue
        # States are at most 1. The tolerance, the memory of a chain that forgets
        # slowly, and what another order of rounding does.
        allowed = 20 * row["tolerance"] + 10 * ((row["error_estimate"] or 0) + _EPS)
        if row["difference"] is None or not row["difference"] <= allowed:
            # What is no number is stored as null.
            difference = row["difference"]
            off = "not finite" if difference is None else f"off by {difference:.1e}"
            found.append(
                f"seed {row['seed']}, gain {row['gain']}, {row['solver']}: "
                f"successful, but {off} (allowed: {allowed:.1e})"
            )
    return found


def remembers(row: dict[str, Any]) -> bool:
    """Whether the last state depends on the first, though errors shrink.

    Several solutions attract, and which one is reached is decided at some time.
    """
    return row["exponent"] < 0 and row["spread"] > 1e-3


def text(record: Record) -> str:
    lines = heading(record)
    titles = ["exponent", "networks", *(name for name, _ in _SOLVERS.values())]
    rows = []
    known = [row for row in record["rows"] if row["exponent"] is not None]
    for low, high in zip(_EDGES, _EDGES[1:], strict=False):
        here = [row for row in known if low <= row["exponent"] < high]
        for several in (False, True):
            chosen = [row for row in here if remembers(row) == several]
            if chosen:
                words = _range(low, high) + (", several attract" if several else "")
                count = sum(row["solver"] == "deer" for row in chosen)
                by_solver = [
                    _cell([row for row in chosen if row["solver"] == solver])
                    for solver in _SOLVERS
                ]
                rows.append([words, count, *by_solver])
    lines += markdown(titles, rows)
    lines += [
        "",
        "Median of the sweeps (least to most); in brackets how many of the networks",
        "were not solved, by result code.",
    ]
    return "\n".join(lines)


def _range(low, high):
    if low == -math.inf:
        return f"below {high:g}"
    return f"{low:g} and above" if high == math.inf else f"{low:g} to {high:g}"


def _cell(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    sweeps = [row["sweeps"] for row in rows]
    words = f"{np.median(sweeps):g} ({min(sweeps)} to {max(sweeps)})"
    codes = [row["result"] for row in rows if row["result"] != "successful"]
    if codes:
        counts = (f"{codes.count(code)} {code}" for code in dict.fromkeys(codes))
        words += f" [{', '.join(counts)}]"
    return words


def draw(record: Record, stem: pathlib.Path) -> list[pathlib.Path]:
    """A panel for each solver; the shape of a marker is the result code."""
    config = record["config"]
    length = config["length"]
    figure = pictures.figure(
        *(10, 7.4),
        f"Sweeps over {length:,} steps of z' = tanh(gain W z + x) with "
        f"{config['size']} units, gain from 0.5 to 2, float64",
    )
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    rows = [row for row in record["rows"] if row["exponent"] is not None]
    exponents = [row["exponent"] for row in rows]
    # Errors that shrink by exp(exponent) in a step are forgotten after so many steps.
    past = np.linspace(min([*exponents, -0.05]), -1e-3, 400)
    for axes, (solver, (name, colour)) in zip(grid.flat, _SOLVERS.items(), strict=True):
        axes.plot(
            *(past, np.minimum(math.log(rows[0]["tolerance"]) / past, length)),
            color=pictures.GREY,
            linewidth=1.2,
        )
        axes.axhline(length, color=pictures.GREY, linestyle=":", linewidth=1)
        axes.axvline(0, color=pictures.BLACK, linewidth=0.8)
        for row in rows:
            if row["solver"] == solver:
                axes.semilogy(
                    *(row["exponent"], row["sweeps"], _MARKERS[row["result"]]),
                    color=colour,
                    markersize=6,
                    markerfacecolor="white" if remembers(row) else colour,
                )
        pictures.tidy(axes, title=name)
    for axes in grid[-1]:
        axes.set_xlabel("Lyapunov exponent (1 / step)")
    for axes in grid[:, 0]:
        axes.set_ylabel("sweeps")
    found = dict.fromkeys(row["result"] for row in rows)
    legend = [
        Line2D(
            *([], []),
            marker=_MARKERS.get(code, "o"),
            linestyle="",
            color=pictures.BLACK,
            label=code.replace("_", " "),
        )
        for code in found
    ]
    legend += [
        Line2D(
            *([], []),
            marker="o",
            linestyle="",
            color=pictures.BLACK,
            markerfacecolor="white",
            label="several solutions attract",
        ),
        Line2D([], [], color=pictures.GREY, label="ln(tolerance) / exponent"),
        Line2D([], [], color=pictures.GREY, linestyle=":", label="T sweeps"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=6, frameon=False)
    return [pictures.write(figure, stem.with_suffix(".png"))]
