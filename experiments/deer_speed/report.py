"""The table and the heat maps of the speed grid."""

import math
import pathlib
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm

from benchmarks.statistics import geometric_mean

from .. import pictures
from ..common import heading, markdown, Record


_GROUPS = ("forward", "value and gradient")
_SOLVERS = ("deer", "auto")
_SEQUENTIAL = "lax.scan"
# Whatever was measured then is noise.
SAME = "same program"
_MISSING = "not measured: "
# Factors beyond this have the last colour.
_MOST = 16


def speed_ups(
    record: Record, group: str, solver: str
) -> dict[tuple[int, int], list[float] | str]:
    """By `(n, T)`: time of `lax.scan` over that of the solver, of all seeds.

    In place of the factors words where there is none to give.
    """
    found: dict[tuple[int, int], list[float] | str] = {}
    for row in record["rows"]:
        if row["group"] != group:
            continue
        cell = (row["n"], row["T"])
        problem = _contestant(row, solver)["problem"]
        problem = problem or _contestant(row, _SEQUENTIAL)["problem"]
        earlier = found.setdefault(cell, [])
        if problem:
            found[cell] = problem.replace(_MISSING, "not run: ")
            continue
        (factor,) = (x for x in row["ratios"] if x["denominator"] == solver)
        if factor["same_program"]:
            found[cell] = SAME
        elif isinstance(earlier, list):
            earlier.append(factor["medians"])
    return found


def _contestant(row: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (item for item in row["contestants"] if item["name"] == name)
    return found


def complaints(record: Record) -> list[str]:
    """Every contestant that had to be right and was not."""
    return [
        f"{row['group']}, {row['name']}: {item['name']}: {item['problem']}"
        for row in record["rows"]
        for item in row["contestants"]
        if item["problem"] and item["required"]
    ]


def text(record: Record) -> str:
    lines = heading(record)
    lengths = sorted({row["T"] for row in record["rows"]})
    for group in _GROUPS:
        for solver in _SOLVERS:
            factors = speed_ups(record, group, solver)
            lines += [f"{group}: time of lax.scan / time of {solver}", ""]
            titles = ["", *(f"T={length:,}" for length in lengths)]
            rows = [
                [f"n={n}", *(_words(factors.get((n, T), "")) for T in lengths)]
                for n in sorted({n for n, _ in factors})
            ]
            lines += [*markdown(titles, rows), ""]
    lines += _facts(record)
    return "\n".join(lines)


def _words(factors: list[float] | str) -> str:
    if isinstance(factors, str):
        return factors
    mean = _factor(geometric_mean(factors))
    if len(factors) == 1:
        return mean
    return f"{mean} ({_factor(min(factors))} to {_factor(max(factors))})"


def _factor(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def _facts(record):
    items = [
        item
        for row in record["rows"]
        for item in row["contestants"]
        if item["name"] == "deer" and not item["problem"]
    ]
    if not items:
        return []
    sweeps = [item["sweeps"] for item in items if "sweeps" in item]
    found = [f"sweeps of deer: {min(sweeps)} to {max(sweeps)}"] if sweeps else []
    worst = max(item["deviation"] for item in items)
    found.append(f"largest deviation of deer from the reference: {worst:.1e}")
    same = [
        ratio["medians"]
        for row in record["rows"]
        for ratio in row["ratios"]
        if ratio["same_program"]
    ]
    if same:
        found.append(
            f"where auto was the very program of lax.scan ({len(same)} times), the "
            f"factor was measured as {min(same):.2f} to {max(same):.2f}: that much "
            "is noise"
        )
    return found


def draw(record: Record, stem: pathlib.Path) -> list[pathlib.Path]:
    """One heat map for each solver and group."""
    sizes = sorted({row["n"] for row in record["rows"]})
    lengths = sorted({row["T"] for row in record["rows"]})
    figure = pictures.figure(
        max(8.0, 2.4 + 2.1 * len(lengths)),
        max(4.2, 1.8 + 0.95 * len(sizes)),
        f"How many times as fast as jax.lax.scan: GRU, batch of "
        f"{record['config']['batch']}, float32",
    )
    grid = figure.subplots(2, 2, sharex=True, sharey=True, squeeze=False)
    norm = TwoSlopeNorm(0, -math.log2(_MOST), math.log2(_MOST))
    images = []
    for axes, solver in zip(grid, _SOLVERS, strict=True):
        for axis, group in zip(axes, _GROUPS, strict=True):
            factors = speed_ups(record, group, solver)
            images.append(_heat_map(axis, factors, sizes, lengths, norm))
            axis.set_title(f'solver="{solver}", {group}', loc="left", fontsize=10)
    for axis in grid[-1]:
        axis.set_xlabel("steps T")
    for axis in grid[:, 0]:
        axis.set_ylabel("units n")
    bar = figure.colorbar(images[0], ax=grid, fraction=0.03, pad=0.02)
    most = round(math.log2(_MOST))
    ticks = list(range(-most, most + 1, 2))
    bar.set_ticks(ticks, labels=[_tick(x) for x in ticks])
    bar.set_label("time of lax.scan / time of parafix")
    return [pictures.write(figure, stem.with_suffix(".png"))]


def _tick(exponent: float) -> str:
    return f"{2**exponent:g}" if exponent >= 0 else f"1/{2**-exponent:g}"


def _heat_map(axis, factors, sizes, lengths, norm):
    values = np.full((len(sizes), len(lengths)), np.nan)
    for (n, T), found in factors.items():
        row, column = sizes.index(n), lengths.index(T)
        if isinstance(found, str):
            words = found.replace(": ", ":\n").replace("same ", "same\n")
            if found == SAME:
                values[row, column] = 0
            axis.text(column, row, words, ha="center", va="center", fontsize=7)
            continue
        mean = geometric_mean(found)
        values[row, column] = math.log2(mean)
        strong = abs(math.log2(mean)) > 0.65 * norm.vmax
        colour = "white" if strong else "black"
        label = _factor(mean)
        axis.text(
            *(column, row, label), ha="center", va="center", color=colour, fontsize=9
        )
    # White is as fast as lax.scan, purple faster, orange slower; grey was not run.
    axis.set_facecolor("#E4E4E4")
    image = axis.imshow(
        np.ma.masked_invalid(values), cmap="PuOr", norm=norm, aspect="auto"
    )
    axis.set_xticks(range(len(lengths)), [_thousands(T) for T in lengths])
    axis.set_yticks(range(len(sizes)), [str(n) for n in sizes])
    axis.set_xticks(np.arange(len(lengths) + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(sizes) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.tick_params(which="minor", length=0)
    return image


def _thousands(T: int) -> str:
    if T >= 1_000_000:
        return f"{T / 1_000_000:g}M"
    return f"{T / 1000:g}k" if T >= 1000 else str(T)
