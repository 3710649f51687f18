"""The table and the picture of the differences."""

import pathlib

import numpy as np

from .. import pictures
from ..common import heading, markdown, Record


_SOLVERS = {
    "deer": ("DEER", pictures.BLUE),
    "quasi-deer": ("quasi-DEER", pictures.ORANGE),
}
_EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
# Where between the lines a legend has room.
_FREE = {"float32": (0.5, 0.77), "float64": (0.5, 0.45)}
_LOOP = "loop, float32, from float64"


def complaints(record: Record) -> list[str]:
    found = []
    for row in record["rows"]:
        if row["solver"] == "loop":
            continue
        what = f"seed {row['seed']}, {row['dtype']}, {row['solver']}"
        if row["result"] != "successful":
            found.append(f"{what}: {row['result']}")
        # Written so that NaN, which is stored as null, is wrong.
        elif row["largest"] is None or not row["largest"] <= row["allowed"]:
            found.append(f"{what}: off by {row['largest']}, allowed {row['allowed']}")
    return found


def text(record: Record) -> str:
    lines = heading(record)
    titles = ("", "sweeps", "largest difference", "median difference", "largest error")
    rows = []
    for dtype in _EPS:
        for solver, (name, _) in _SOLVERS.items():
            found = _of(record, dtype, solver)
            if found:
                rows.append(
                    [
                        f"{name}, {dtype}, from the loop",
                        _span([row["sweeps"] for row in found]),
                        f"{max(row['largest'] for row in found):.1e}",
                        f"{np.median([row['median'] for row in found]):.1e}",
                        f"{max(row['error'] for row in found):.1e}",
                    ]
                )
    loops = _of(record, "float32", "loop")
    largest = f"{max(row['largest'] for row in loops):.1e}"
    median = f"{np.median([row['median'] for row in loops]):.1e}"
    rows.append([_LOOP, "", largest, median, largest])
    lines += markdown(titles, rows)
    lines += ["", "error: from the loop in float64; worst of all seeds"]
    return "\n".join(lines)


def _of(record, dtype, solver):
    return [
        row
        for row in record["rows"]
        if (row["dtype"], row["solver"]) == (dtype, solver)
    ]


def _span(values):
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def draw(record: Record, stem: pathlib.Path) -> list[pathlib.Path]:
    """Outputs of one unit above, differences over time below."""
    config = record["config"]
    figure = pictures.figure(
        *(10, 6.6),
        f"GRU of {config['size']} units over {config['length']:,} steps: "
        "DEER beside the sequential loop",
    )
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.5))
    _outputs(figure.add_subplot(grid[0, :]), record)
    left = figure.add_subplot(grid[1, 0])
    for axes, dtype in (
        (left, "float32"),
        (figure.add_subplot(grid[1, 1], sharex=left), "float64"),
    ):
        _differences(axes, record, dtype)
    return [pictures.write(figure, stem.with_suffix(".png"))]


def _outputs(axes, record):
    found = [row for row in _of(record, "float32", "deer") if row["seed"] == 0]
    if found:
        row = found[0]
        length = record["config"]["length"]
        time = np.arange(length - len(row["outputs"]), length)
        axes.plot(
            *(time, row["sequential_outputs"]),
            color=pictures.BLACK,
            linewidth=1.2,
            label="sequential",
        )
        axes.plot(
            *(time, row["outputs"], "o"),
            color=pictures.BLUE,
            markersize=4.5,
            markerfacecolor="none",
            label="DEER",
        )
        # Above the axes, where no output is.
        place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
        axes.legend(frameon=False, ncols=2, **place)
    title = "Output of the first unit at the end of the sequence, float32"
    pictures.tidy(axes, x="step", y="output", title=title)
    axes.margins(x=0.01)


def _differences(axes, record, dtype):
    series = [
        (solver, f"{name} - sequential", colour, 0.9)
        for solver, (name, colour) in _SOLVERS.items()
    ]
    if dtype == "float32":
        # Below the others, for it is what they are to be compared with.
        loop = ("loop", "sequential float32 - float64", pictures.GREY, 0.9)
        series = [loop, *reversed(series)]
    else:
        series.reverse()
    eps = _EPS[dtype]
    for solver, label, colour, width in series:
        rows = [row for row in _of(record, dtype, solver) if row["seed"] == 0]
        for row in rows:
            difference = np.array(row["difference"], float)
            # Zero has no place on this axis.
            shown = np.where(difference > 0, difference, np.nan)
            axes.semilogy(
                row["starts"], shown, color=colour, linewidth=width, label=label
            )
    _level(axes, eps, "eps")
    for row in _of(record, dtype, "deer")[:1]:
        _level(axes, row["tolerance"], "tolerance")
    pictures.tidy(
        axes, x="step", y="largest |difference|", title=f"Over all units, {dtype}"
    )
    axes.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=_FREE[dtype])


def _level(axes, height, name):
    axes.axhline(height, color=pictures.BLACK, linestyle=":", linewidth=1)
    axes.annotate(
        f"{name} {height:.1e}",
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
