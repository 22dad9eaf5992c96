"""A finished search as pictures, after Fig. 4, 5 and 7 of the paper (arXiv 2605.26636), and the metric against latency.

`draw` reads trace.json and metrics.csv of the search's folder. Each `*_figure` makes one matplotlib figure, 1000 pixels
wide, without a display. matplotlib is imported where it is used, as that takes a while.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jetvit.cost_model.files.whole_file import refuse_full_disk, write_whole
from jetvit.patterns.errors import InputError
from jetvit.search.tasks.metrics import METRIC_NAMES

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _DPI = 10, 100  # inches, pixels an inch
_STYLE = {
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,  # a tick is the number itself,
    "axes.formatter.limits": (-9, 12),  # and has no power of ten
}
_PHASES = {
    "efficient": "linear and window attention only",
    "full": "full attention put back",
    "listed": "put back in the best of the listed paths",
}
_LETTERS = "ABCDEFGH"
# Kinds by cost, each with a colour map and the part of it that its labels share: larger windows are darker.
_SHADES = {"linear": ("Blues", 0.15, 0.65), "window": ("Oranges", 0.25, 0.9), "full": ("Greys", 0.85, 0.95)}
# Of Okabe and Ito: they differ for the colour-blind.
_BLUE, _ORANGE, _VERMILLION, _GREEN, _PURPLE, _GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#777777"
_ORIGINAL: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1}
_CHOSEN: dict[str, Any] = {"color": _VERMILLION, "marker": "*", "markersize": 14, "linestyle": "", "zorder": 4}

_Number = Literal["value", "latency_ms", "full"]


@dataclass(frozen=True)
class RatedPath:
    """A path of the trace: the label of each site's choice, the metric (more is better), and the model's latency."""

    labels: Mapping[str, str]
    value: float
    latency_ms: float

    @property
    def full(self) -> int:
        """At how many sites it is full attention."""
        return sum(label == "full" for label in self.labels.values())


@dataclass(frozen=True)
class Trace:
    """The content of trace.json: see `Searched`. The best path of a step of the beam search is its first."""

    metric: str
    sites: tuple[str, ...]
    best: RatedPath
    original: RatedPath
    steps: tuple[tuple[str, tuple[RatedPath, ...]], ...]
    listed: tuple[RatedPath, ...]
    controls: Mapping[str, RatedPath]

    @property
    def beam(self) -> list[RatedPath]:
        """All paths of all steps of the beam search."""
        return [path for _, paths in self.steps for path in paths]


def draw(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write sites.png, full_blocks.png, training.png and trade_off.png of a finished search.

    Args:
        folder: of the search.
        out: the folder of the pictures, made if it is not there; by default that of the search.
    Returns:
        the files that were written.
    Raises:
        InputError: the search is not finished, or its trace.json or metrics.csv is damaged.
    """
    from matplotlib import style

    folder = Path(folder)
    out = folder if out is None else Path(out)
    trace, losses = read_trace(folder), read_losses(folder)
    out.mkdir(parents=True, exist_ok=True)
    with style.context(["default", _STYLE]):
        figures = {
            "sites": sites_figure(trace),
            "full_blocks": full_blocks_figure(trace),
            "training": training_figure(losses),
            "trade_off": trade_off_figure(trace),
        }
        for name, figure in figures.items():
            _save(figure, out / f"{name}.png")
    return [out / f"{name}.png" for name in figures]


def draw_curves(curves: Mapping[str, Sequence[float]], path: str | os.PathLike[str], title: str) -> None:
    """Write a PNG with the losses of several trainings in one panel, step by step, by what each is called."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        figure = _figure(5)
        axes = figure.subplots()
        colours = cycle([_BLUE, _VERMILLION, _GREEN, _PURPLE, _ORANGE, "black"])
        for (name, losses), colour in zip(curves.items(), colours, strict=False):
            _curve(axes, losses, colour, name)
        _loss_axes(axes, [loss for losses in curves.values() for loss in losses], title)
        axes.legend()
        _save(figure, Path(path))


def _save(figure: Figure, file: Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png")
    with refuse_full_disk(file):
        write_whole(file, data.getvalue())


def read_trace(folder: Path) -> Trace:
    """The trace of a finished search. Raises InputError if there is none, or if it is damaged."""
    file = folder / "trace.json"
    if not file.exists():
        raise InputError("there is no trace to draw", why="the search is not finished", where=str(file))
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        sites = tuple(record["sites"])

        def rated(some: Iterable[Mapping[str, Any]]) -> tuple[RatedPath, ...]:
            return tuple(
                RatedPath({site: each["path"][site] for site in sites}, float(each["value"]), float(each["latency_ms"]))
                for each in some
            )

        best, original = rated([record["best"], record["full"]])
        return Trace(
            metric=record["metric"],
            sites=sites,
            best=best,
            original=original,
            steps=tuple((level["phase"], rated(level["paths"])) for level in record["beam"]),
            listed=rated(record["listed"]),
            controls=dict(zip(record["controls"], rated(record["controls"].values()), strict=True)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "the trace of the search is damaged", why=f"{type(error).__name__}: {error}", where=str(file)
        ) from error


def read_losses(folder: Path) -> dict[str, list[float]]:
    """The losses of each stage, step by step. Raises InputError if there are none, or if the file is damaged."""
    file = folder / "metrics.csv"
    losses: dict[str, list[float]] = {}
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                losses.setdefault(row["stage"], []).append(float(row["loss"]))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            "the losses of the search cannot be read", why=f"{type(error).__name__}: {error}", where=str(file)
        ) from error
    if not losses:
        raise InputError("the search has no losses", where=str(file))
    return losses


def sites_figure(trace: Trace) -> Figure:
    """Fig. 7: what each site is on the best path of each step; below it that path's metric and latency."""
    from matplotlib.patches import Patch

    columns = [*(paths[0] for _, paths in trace.steps), trace.best]
    colours = _colours(label for path in columns for label in path.labels.values())
    steps, sites = len(trace.steps), len(trace.sites)
    # The chosen path has a wider column, lest it is lost beside a hundred steps.
    edges = np.array([*range(steps + 1), steps + max(1.0, steps / 20)]) + 0.5
    centres = (edges[:-1] + edges[1:]) / 2
    phases = {phase: [at for at, (its, _) in enumerate(trace.steps) if its == phase] for phase, _ in trace.steps}

    tall = sites * min(0.4, max(0.16, 4 / sites))
    figure = _figure(tall + 4.4)
    top, *lower = figure.subplots(3, 1, sharex=True, height_ratios=[tall, 1.4, 1.4])
    shared, names = _short_names(trace.sites)
    figure.suptitle("Best path at each step of the search" + f"\nsites: {shared}" * bool(shared))
    _site_map(top, edges, [[path.labels[site] for path in columns] for site in trace.sites], colours)
    top.set_yticks(np.arange(sites) + 0.5, names, fontsize=9 if sites <= 24 else 7.5)
    above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "weight": "bold"}
    for letter, its in zip(_LETTERS, phases.values(), strict=False):
        top.annotate(letter, ((edges[its[0]] + edges[its[-1] + 1]) / 2, 0), (0, 4), **above)
        for axes in (top, *lower):
            axes.axvline(edges[its[-1] + 1], color="white", linewidth=4)  # it shows on dark cells
            axes.axvline(edges[its[-1] + 1], color="black", linewidth=1.5)
    top.annotate("★", (centres[-1], 0), (0, 4), color=_VERMILLION, fontsize=12, **above)

    for axes, (number, name) in zip(lower, _axis_names(trace).items(), strict=True):
        values = np.array([getattr(path, number) for path in columns])
        for its in phases.values():
            axes.plot(centres[its], values[its], "-o", color=_BLUE, markersize=4)
        axes.axhline(getattr(trace.original, number), **_ORIGINAL, label="original model")
        axes.plot(centres[-1:], values[-1:], **_CHOSEN, label="chosen path")
        axes.set_ylabel(name.replace(" (", "\n("))
        axes.margins(y=0.15)
        axes.grid(axis="y", alpha=0.3)
    key = [f"{letter}: {_PHASES.get(phase, phase)}" for letter, phase in zip(_LETTERS, phases, strict=False)]
    lower[-1].set(xlim=(edges[0], edges[-1]), xlabel="step of the beam search\n" + "    ".join(key))
    lower[-1].set_xticks(range(1, steps + 1, math.ceil(max(steps, 1) / 24)))
    patches = [Patch(color=colour, label=label) for label, colour in colours.items()]
    _legend(figure, [*patches, *lower[-1].get_legend_handles_labels()[0]], 5)
    return figure


def full_blocks_figure(trace: Trace) -> Figure:
    """Fig. 4: the metric, and the latency, of the best path with so many full sites, and of the controls."""
    found = [*trace.beam, *trace.listed]
    best: dict[int, RatedPath] = {}
    for path in sorted(found, key=lambda path: (path.value, -path.latency_ms)):
        best[path.full] = path
    counts = {*best, trace.best.full, *(path.full for path in trace.controls.values())}
    figure = _figure(5)
    panels = figure.subplots(1, 2)
    for panel, (number, name) in zip(panels, _axis_names(trace).items(), strict=True):
        some = {"color": _GREY, "alpha": 0.35, "markersize": 4, "markeredgewidth": 0}
        _plot(panel, found, "full", number, marker="o", linestyle="", **some, label="path that was rated")
        ends = [best[count] for count in sorted(best)]
        _plot(panel, ends, "full", number, marker="o", color=_BLUE, label="best by the metric with so many")
        _controls(panel, trace, "full", number)
        _plot(panel, [trace.best], "full", number, **_CHOSEN, label="chosen path")
        panel.axhline(getattr(trace.original, number), **_ORIGINAL, label="original model, full everywhere")
        panel.set(xlabel="sites with full attention", ylabel=name)
        panel.set_xlim(min(counts) - 0.5, max(counts) + 0.5)
        panel.set_xticks(range(min(counts), max(counts) + 1, math.ceil((max(counts) - min(counts) + 1) / 12)))
        panel.grid(alpha=0.3)
    _legend(figure, panels[0].get_legend_handles_labels()[0], 3)
    figure.suptitle(f"{_metric(trace)} and latency by the number of full sites")
    return figure


def training_figure(losses: Mapping[str, Sequence[float]]) -> Figure:
    """Fig. 5: the losses of each stage, smoothed over the raw ones."""
    columns = min(3, len(losses))
    rows = math.ceil(len(losses) / columns)
    figure = _figure(2.7 * rows + 0.5)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, (stage, values) in zip(panels, losses.items(), strict=False):
        _curve(panel, values, _BLUE)
        _loss_axes(panel, values, stage.replace("_", " "))
    for panel in panels[len(losses) :]:
        panel.set_visible(False)
    figure.suptitle("Losses of the stages: each step, and smoothed")
    return figure


def trade_off_figure(trace: Trace) -> Figure:
    """The metric over the latency of every path that was rated, and the Pareto front of them."""
    figure = _figure(6)
    axes = figure.subplots()
    groups = (("beam search", trace.beam, "o", _BLUE), ("listed by the integer program", trace.listed, "^", _ORANGE))
    for name, paths, marker, colour in groups:
        look = {"marker": marker, "linestyle": "", "color": colour, "alpha": 0.6, "markeredgewidth": 0}
        _plot(axes, paths, "latency_ms", "value", **look, label=name)
    _controls(axes, trace, "latency_ms", "value")
    _plot(
        axes, [trace.original], "latency_ms", "value", marker="D", linestyle="", color="black", label="original model"
    )
    axes.axhline(trace.original.value, **_ORIGINAL, alpha=0.5)
    _plot(axes, [trace.best], "latency_ms", "value", **_CHOSEN, label="chosen path")
    front = _front([*trace.beam, *trace.listed, *trace.controls.values(), trace.original])
    look = {"drawstyle": "steps-post", "color": _GREY, "linewidth": 1.2, "zorder": 1}
    _plot(axes, front, "latency_ms", "value", **look, label="Pareto front")
    names = _axis_names(trace)
    axes.set(xlabel=names["latency_ms"], ylabel=names["value"], title=f"{_metric(trace)} against latency")
    axes.grid(alpha=0.3)
    _legend(figure, axes.get_legend_handles_labels()[0], 3)
    return figure


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def _axis_names(trace: Trace) -> dict[_Number, str]:
    return {"value": f"{_metric(trace)} (more is better)", "latency_ms": "model's latency (ms)"}


def _metric(trace: Trace) -> str:
    return METRIC_NAMES.get(trace.metric, trace.metric)


def _legend(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """Below all panels, in lines that are about as long."""
    lines = math.ceil(len(handles) / columns)
    figure.legend(handles=handles, loc="outside lower center", ncols=math.ceil(len(handles) / lines), frameon=False)


def _site_map(axes: Axes, edges: np.ndarray, labels: Sequence[Sequence[str]], colours: Mapping[str, str]) -> None:
    """Cells of labels [sites, columns], the first site at the top."""
    from matplotlib.colors import ListedColormap

    codes = [[list(colours).index(label) for label in row] for row in labels]
    axes.pcolormesh(
        edges, np.arange(len(labels) + 1), codes,
        cmap=ListedColormap(list(colours.values())), vmin=-0.5, vmax=len(colours) - 0.5, edgecolors="white", lw=0.5,
    )  # fmt: skip
    axes.set(ylim=(len(labels), 0), ylabel="site")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _plot(axes: Axes, paths: Iterable[RatedPath], across: _Number, up: _Number, **look: Any) -> None:
    points = [(getattr(path, across), getattr(path, up)) for path in paths]
    axes.plot([x for x, _ in points], [y for _, y in points], **look)


def _controls(axes: Axes, trace: Trace, across: _Number, up: _Number) -> None:
    """The paths that the search has to beat, each with a marker of its own, hollow: they may lie on other points."""
    look = {
        "linestyle": "",
        "color": _PURPLE,
        "markersize": 8,
        "fillstyle": "none",
        "markeredgewidth": 1.6,
        "zorder": 5,
    }
    for (name, path), marker in zip(trace.controls.items(), cycle("sv<>DpPXh"), strict=False):
        _plot(axes, [path], across, up, marker=marker, **look, label=f"control: {name}")


def _curve(axes: Axes, losses: Sequence[float], colour: str, name: str = "") -> None:
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps, _smoothed(losses), color=colour, linewidth=1.8, label=name)


def _smoothed(losses: Sequence[float]) -> np.ndarray:
    """Means over a twentieth of the steps; at the ends, over what there is of it."""
    window = np.ones(max(1, len(losses) // 20))
    return np.convolve(losses, window, "same") / np.convolve(np.ones(len(losses)), window, "same")


def _loss_axes(axes: Axes, losses: Sequence[float], title: str) -> None:
    """A log scale, if all losses are positive, with plain numbers and at least two of them."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.3)
    if min(losses) > 0:
        axes.set(yscale="log", ylabel="loss (log scale)")
        ratio = max(losses) / min(losses)
        log = LogLocator(subs=(1, 2, 3, 5, 7) if ratio < 20 else (1, 2, 5))
        axes.yaxis.set_major_locator(MaxNLocator(5) if ratio < 3 else log)
        axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:.9f}".rstrip("0").rstrip("."))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _colours(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label, the cheaper kinds first: a hue a kind, a shade a label."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    by_kind: dict[str, set[str]] = {kind: set() for kind in _SHADES}
    for label in labels:
        by_kind[label.split()[0]].add(label)
    colours: dict[str, str] = {}
    for kind, some in by_kind.items():
        name, low, high = _SHADES[kind]
        in_order = sorted(some, key=lambda label: ([int(digits) for digits in re.findall(r"\d+", label)], label))
        shades = np.linspace(low, high, len(some) + 2)[1:-1]
        colours |= {label: to_hex(colormaps[name](shade)) for label, shade in zip(in_order, shades, strict=True)}
    return colours


def _front(paths: Iterable[RatedPath]) -> list[RatedPath]:
    """The Pareto front: the paths that no other path beats in both latency and metric, the fastest first."""
    front: list[RatedPath] = []
    for path in sorted(paths, key=lambda path: (path.latency_ms, -path.value)):
        if not front or path.value > front[-1].value:
            front.append(path)
    return front


def _short_names(sites: Sequence[str]) -> tuple[str, list[str]]:
    """The part that all names share, "blocks.*.attn", and each name without it."""
    if len(sites) == 1:
        return "", list(sites)
    parts = [name.split(".") for name in sites]
    begin = _shared([part[:-1] for part in parts])
    rest = [part[len(begin) :] for part in parts]
    end = _shared([part[:0:-1] for part in rest])[::-1]
    names = [".".join(part[: len(part) - len(end)]) for part in rest]
    return ".".join([*begin, "*", *end]) if begin or end else "", names


def _shared(parts: Sequence[Sequence[str]]) -> list[str]:
    """The common prefix of all."""
    return [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))]
