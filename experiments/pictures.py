"""How the pictures of the experiments look."""

import pathlib
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


# Okabe and Ito's colours, which stay apart for every kind of colour vision.
BLUE, ORANGE, GREEN, PURPLE, BLACK = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7"),
    "#000000",
)
GREY = "#888888"
_DPI = 110


def figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure of so many inches; without pyplot there is no global state."""
    made = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(made)
    if title:
        made.suptitle(title, fontsize=12)
    return made


def tidy(axes: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Labels, and no frame where there is no axis."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def write(made: Figure, path: pathlib.Path, **options: Any) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No name and no date in the file, so that the same results give the same picture.
    made.savefig(path, metadata={"Software": None}, **options)
    return path
