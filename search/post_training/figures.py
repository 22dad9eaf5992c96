"""Style, colours and parts of the figures of a search.

matplotlib is imported where it is used, as that takes a while.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jetvit.cost_model.files.whole_file import refuse_full_disk, write_whole
from jetvit.search.post_training.trace import RatedPath, Trace
from jetvit.search.tasks.metrics import METRIC_NAMES

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 10, 100  # inches, pixels an inch
STYLE = {
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,  # a tick is the number itself,
    "axes.formatter.limits": (-9, 12),  # and has no power of ten
}
# Of Okabe and Ito: they differ for the colour-blind.
BLUE, ORANGE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#777777"
ORIGINAL: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}
CHOSEN: dict[str, Any] = {"color": VERMILLION, "marker": "*", "markersize": 14, "linestyle": "", "zorder": 4}

Quantity = Literal["value", "latency_ms", "full"]
"""A number of a path: the metric, the latency, or how many sites are full."""


def new_figure(height: float) -> Figure:
    """Make an empty figure, 1000 pixels wide. height: in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    with refuse_full_disk(file):
        write_whole(file, data.getvalue())


def add_legend(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """Put a legend below all panels, in lines of about the same length."""
    lines = math.ceil(len(handles) / columns)
    figure.legend(handles=handles, loc="outside lower center", ncols=math.ceil(len(handles) / lines), frameon=False)


def metric_name(trace: Trace) -> str:
    """Return the name of the metric as a reader knows it."""
    return METRIC_NAMES.get(trace.metric, trace.metric)


def axis_names(trace: Trace) -> dict[Quantity, str]:
    """Return the labels of the axes of the metric and of the latency."""
    return {"value": f"{metric_name(trace)} (more is better)", "latency_ms": "model's latency (ms)"}


def plot_paths(axes: Axes, paths: Iterable[RatedPath], across: Quantity, up: Quantity, **look: Any) -> None:
    """Plot one quantity of paths over another."""
    points = [(getattr(path, across), getattr(path, up)) for path in paths]
    axes.plot([x for x, _ in points], [y for _, y in points], **look)


def plot_controls(axes: Axes, trace: Trace, across: Quantity, up: Quantity) -> None:
    """Plot the paths that the search has to beat, each with its own marker, hollow: they may lie on other points."""
    look = {
        "linestyle": "",
        "color": PURPLE,
        "markersize": 8,
        "fillstyle": "none",
        "markeredgewidth": 1.6,
        "zorder": 5,
    }
    for (name, path), marker in zip(trace.controls.items(), cycle("sv<>DpPXh"), strict=False):
        plot_paths(axes, [path], across, up, marker=marker, **look, label=f"control: {name}")
