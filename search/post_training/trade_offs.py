"""The metric of a search against the full sites (Fig. 4 of the paper, arXiv 2605.26636) and against latency."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jetvit.search.post_training.figures import (
    BLUE,
    CHOSEN,
    GREY,
    ORANGE,
    ORIGINAL,
    add_legend,
    axis_names,
    metric_name,
    new_figure,
    plot_controls,
    plot_paths,
)
from jetvit.search.post_training.trace import RatedPath, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def full_blocks_figure(trace: Trace) -> Figure:
    """Draw the metric and the latency of the best path by the number of its full sites, and of the controls."""
    found = [*trace.beam, *trace.listed]
    best: dict[int, RatedPath] = {}
    for path in sorted(found, key=lambda path: (path.value, -path.latency_ms)):
        best[path.full] = path
    counts = {*best, trace.best.full, *(path.full for path in trace.controls.values())}
    figure = new_figure(5)
    panels = figure.subplots(1, 2)
    for panel, (number, name) in zip(panels, axis_names(trace).items(), strict=True):
        some = {"color": GREY, "alpha": 0.35, "markersize": 4, "markeredgewidth": 0}
        plot_paths(panel, found, "full", number, marker="o", linestyle="", **some, label="path that was rated")
        ends = [best[count] for count in sorted(best)]
        plot_paths(panel, ends, "full", number, marker="o", color=BLUE, label="best by the metric with so many")
        plot_controls(panel, trace, "full", number)
        plot_paths(panel, [trace.best], "full", number, **CHOSEN, label="chosen path")
        panel.axhline(getattr(trace.original, number), **ORIGINAL, label="original model, full everywhere")
        panel.set(xlabel="sites with full attention", ylabel=name)
        panel.set_xlim(min(counts) - 0.5, max(counts) + 0.5)
        panel.set_xticks(range(min(counts), max(counts) + 1, math.ceil((max(counts) - min(counts) + 1) / 12)))
        panel.grid(alpha=0.3)
    add_legend(figure, panels[0].get_legend_handles_labels()[0], 3)
    figure.suptitle(f"{metric_name(trace)} and latency by the number of full sites")
    return figure


def trade_off_figure(trace: Trace) -> Figure:
    """Draw the metric over the latency of every path that was rated, and their Pareto front."""
    figure = new_figure(6)
    axes = figure.subplots()
    groups = (("beam search", trace.beam, "o", BLUE), ("listed by the integer program", trace.listed, "^", ORANGE))
    for name, paths, marker, colour in groups:
        look = {"marker": marker, "linestyle": "", "color": colour, "alpha": 0.6, "markeredgewidth": 0}
        plot_paths(axes, paths, "latency_ms", "value", **look, label=name)
    plot_controls(axes, trace, "latency_ms", "value")
    plot_paths(
        axes, [trace.original], "latency_ms", "value", marker="D", linestyle="", color="black", label="original model"
    )
    axes.axhline(trace.original.value, **ORIGINAL, alpha=0.5)
    plot_paths(axes, [trace.best], "latency_ms", "value", **CHOSEN, label="chosen path")
    front = _front([*trace.beam, *trace.listed, *trace.controls.values(), trace.original])
    look = {"drawstyle": "steps-post", "color": GREY, "linewidth": 1.2, "zorder": 1}
    plot_paths(axes, front, "latency_ms", "value", **look, label="Pareto front")
    names = axis_names(trace)
    axes.set(xlabel=names["latency_ms"], ylabel=names["value"], title=f"{metric_name(trace)} against latency")
    axes.grid(alpha=0.3)
    add_legend(figure, axes.get_legend_handles_labels()[0], 3)
    return figure


def _front(paths: Iterable[RatedPath]) -> list[RatedPath]:
    """The Pareto front: the paths that no other path beats in both latency and metric, the fastest first."""
    front: list[RatedPath] = []
    for path in sorted(paths, key=lambda path: (path.latency_ms, -path.value)):
        if not front or path.value > front[-1].value:
            front.append(path)
    return front
