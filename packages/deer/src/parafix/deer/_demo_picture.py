"""The picture of the demo."""

import dataclasses

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ._demo_data import Batch
from ._demo_report import duration
from ._demo_results import Comparison, Sweeps


# As many as the heat map has pixels, about.
_BINS = 1000
_MOST_COLUMNS = 6
# Two hues that differ in lightness too: Okabe and Ito's blue and orange.
_SEQUENTIAL, _DEER = "#0072B2", "#E69F00"
# Lightness rises with the error, and nobody needs to tell red from green.
_COLOURS = "cividis"


@dataclasses.dataclass(frozen=True)
class Story:
    """What the picture is about."""

    title: str
    batch: Batch
    sweeps: Sweeps
    comparisons: dict[str, Comparison]
    tolerance: float
    eps: float


def draw(story: Story, path: str) -> None:
    """Writes the picture; the ending of `path` says in which format."""
    # Without pyplot there is no window and no global state.
    figure = Figure(figsize=(12, 8.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(story.title, fontsize=14)
    grid = figure.add_gridspec(3, 2, height_ratios=(1.0, 1.5, 1.2))
    top = figure.add_subplot(grid[0, :])
    middle = figure.add_subplot(grid[1, :], sharex=top)
    _recording(top, story.batch)
    _errors(figure, middle, story)
    _decay(figure.add_subplot(grid[2, 0]), story)
    _times(figure.add_subplot(grid[2, 1]), story.comparisons)
    figure.savefig(path)


def _times_of(batch: Batch) -> tuple[float, str]:
    interval = batch.recording.interval
    return (1.0, "time step") if interval is None else (interval, "time (s)")


def _recording(axes: Axes, batch: Batch) -> None:
    interval, _ = _times_of(batch)
    shown = batch.shown[:, :_MOST_COLUMNS]
    time = np.arange(len(shown)) * interval
    colours = ["black"] if shown.shape[1] == 1 else None
    if colours:
        axes.set_prop_cycle(color=colours)
    axes.plot(time, shown, linewidth=0.8)
    columns = batch.shown.shape[1]
    unit = batch.recording.unit
    axes.set_ylabel(f"recording ({unit})" if unit else "recording")
    title = "The recording, as the first sequence takes it"
    if columns > _MOST_COLUMNS:
        title += f" (the first {_MOST_COLUMNS} of {columns} columns)"
    axes.set_title(title, loc="left", fontsize=11)
    axes.tick_params(labelbottom=False)
    axes.margins(x=0)


def _errors(figure: Figure, axes: Axes, story: Story) -> None:
    interval, label = _times_of(story.batch)
    errors, edges = _binned(story.sweeps.errors)
    floor = story.eps * max(story.sweeps.scale, story.eps)
    image = axes.pcolormesh(
        edges * interval,
        np.arange(len(errors) + 1) - 0.5,
        np.log10(np.maximum(errors, floor)),
        cmap=_COLOURS,
        vmin=np.log10(floor),
        vmax=max(np.log10(max(errors.max(), floor)), np.log10(floor) + 1),
        # Thousands of small rectangles make large files where they stay rectangles.
        rasterized=True,
    )
    axes.invert_yaxis()
    axes.yaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.set_xlabel(label)
    axes.set_ylabel("sweep (0: the guess)")
    title = "Error of the state over time and sweep (first sequence)"
    axes.set_title(title, loc="left", fontsize=11)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=14)
    bar.set_label("log10 |z - z sequential|")
    level = np.log10(story.tolerance)
    if image.norm.vmin < level < image.norm.vmax:
        bar.ax.axhline(level, color="white", linewidth=1.5)
        bar.ax.text(0.5, level, "tol", color="white", ha="center", va="bottom")


def _binned(errors: NDArray[np.float64]) -> tuple[NDArray, NDArray]:
    """At most `_BINS` columns, each with the largest error in it, and their edges."""
    length = errors.shape[1]
    starts = np.unique(np.linspace(0, length, min(length, _BINS) + 1).astype(int))
    return np.maximum.reduceat(errors, starts[:-1], axis=1), starts


def _decay(axes: Axes, story: Story) -> None:
    sweeps = story.sweeps.sweeps
    number = np.arange(len(sweeps))
    for label, marker, colour, errors in (
        ("largest", "o", "black", [sweep.largest for sweep in sweeps]),
        ("median", "s", "#009E73", [sweep.median for sweep in sweeps]),
    ):
        # Zero has no place on this axis.
        shown = np.where(np.array(errors) > 0, errors, np.nan)
        axes.semilogy(number, shown, f"{marker}-", color=colour, label=label)
    axes.axhline(story.tolerance, color="grey", linestyle="--", label="tolerance")
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.set_xlabel("sweep (0: the guess)")
    axes.set_ylabel("|z - z sequential|")
    axes.set_title("Error over all sequences and times", loc="left", fontsize=11)
    axes.legend(frameon=False)


def _times(axes: Axes, comparisons: dict[str, Comparison]) -> None:
    height = 0.36
    for row, comparison in enumerate(comparisons.values()):
        for shift, timing, colour in (
            (-height / 2, comparison.sequential, _SEQUENTIAL),
            (height / 2, comparison.deer, _DEER),
        ):
            seconds = timing.median
            bar = axes.barh(row + shift, seconds * 1e3, height, color=colour)
            axes.bar_label(bar, [duration(seconds)], padding=4)
    handles = axes.patches[:2]
    axes.legend(
        handles,
        ["sequential", "DEER"],
        ncols=2,
        frameon=False,
        # Above the axes, where no bar is.
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0,
    )
    axes.set_yticks(range(len(comparisons)), list(comparisons))
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    compiled = any(c.deer.compilation is not None for c in comparisons.values())
    what = "time after compilation" if compiled else "time"
    axes.set_xlabel(f"{what} (ms), median")
    axes.set_title("Time for the whole batch", loc="left", fontsize=11)
