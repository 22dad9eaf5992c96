"""The choice of each site at each step of a search, as a picture after Fig. 7 of the paper (arXiv 2605.26636)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from jetvit.search.post_training.figures import BLUE, CHOSEN, ORIGINAL, VERMILLION, add_legend, axis_names, new_figure
from jetvit.search.post_training.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PHASES = {
    "efficient": "linear and window attention only",
    "full": "full attention put back",
    "listed": "put back in the best of the listed paths",
}
_LETTERS = "ABCDEFGH"
# Kinds by cost, each with a colour map and the part of it that its labels share: larger windows are darker.
_SHADES = {"linear": ("Blues", 0.15, 0.65), "window": ("Oranges", 0.25, 0.9), "full": ("Greys", 0.85, 0.95)}


def sites_figure(trace: Trace) -> Figure:
    """Draw the choice of each site on the best path of each step; below it that path's metric and latency."""
    from matplotlib.patches import Patch

    columns = [*(paths[0] for _, paths in trace.steps), trace.best]
    colours = label_colours(label for path in columns for label in path.labels.values())
    steps, sites = len(trace.steps), len(trace.sites)
    # The chosen path has a wider column, lest it is lost beside a hundred steps.
    edges = np.array([*range(steps + 1), steps + max(1.0, steps / 20)]) + 0.5
    centres = (edges[:-1] + edges[1:]) / 2
    phases = {phase: [at for at, (its, _) in enumerate(trace.steps) if its == phase] for phase, _ in trace.steps}

    tall = sites * min(0.4, max(0.16, 4 / sites))
    figure = new_figure(tall + 4.4)
    top, *lower = figure.subplots(3, 1, sharex=True, height_ratios=[tall, 1.4, 1.4])
    shared, names = short_names(trace.sites)
    figure.suptitle("Best path at each step of the search" + f"\nsites: {shared}" * bool(shared))
    _site_map(top, edges, [[path.labels[site] for path in columns] for site in trace.sites], colours)
    top.set_yticks(np.arange(sites) + 0.5, names, fontsize=9 if sites <= 24 else 7.5)
    above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "weight": "bold"}
    for letter, its in zip(_LETTERS, phases.values(), strict=False):
        top.annotate(letter, ((edges[its[0]] + edges[its[-1] + 1]) / 2, 0), (0, 4), **above)
        for axes in (top, *lower):
            axes.axvline(edges[its[-1] + 1], color="white", linewidth=4)  # it shows on dark cells
            axes.axvline(edges[its[-1] + 1], color="black", linewidth=1.5)
    top.annotate("★", (centres[-1], 0), (0, 4), color=VERMILLION, fontsize=12, **above)

    for axes, (number, name) in zip(lower, axis_names(trace).items(), strict=True):
        values = np.array([getattr(path, number) for path in columns])
        for its in phases.values():
            axes.plot(centres[its], values[its], "-o", color=BLUE, markersize=4)
        axes.axhline(getattr(trace.original, number), **ORIGINAL, label="original model")
        axes.plot(centres[-1:], values[-1:], **CHOSEN, label="chosen path")
        axes.set_ylabel(name.replace(" (", "\n("))
        axes.margins(y=0.15)
        axes.grid(axis="y", alpha=0.3)
    key = [f"{letter}: {_PHASES.get(phase, phase)}" for letter, phase in zip(_LETTERS, phases, strict=False)]
    lower[-1].set(xlim=(edges[0], edges[-1]), xlabel="step of the beam search\n" + "    ".join(key))
    lower[-1].set_xticks(range(1, steps + 1, math.ceil(max(steps, 1) / 24)))
    patches = [Patch(color=colour, label=label) for label, colour in colours.items()]
    add_legend(figure, [*patches, *lower[-1].get_legend_handles_labels()[0]], 5)
    return figure


def label_colours(labels: Iterable[str]) -> dict[str, str]:
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


def short_names(sites: Sequence[str]) -> tuple[str, list[str]]:
    """The part that all names share, "blocks.*.attn", and each name without it."""
    if len(sites) == 1:
        return "", list(sites)
    parts = [name.split(".") for name in sites]
    begin = _shared([part[:-1] for part in parts])
    rest = [part[len(begin) :] for part in parts]
    end = _shared([part[:0:-1] for part in rest])[::-1]
    names = [".".join(part[: len(part) - len(end)]) for part in rest]
    return ".".join([*begin, "*", *end]) if begin or end else "", names


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


def _shared(parts: Sequence[Sequence[str]]) -> list[str]:
    """The common prefix of all."""
    return [level[0] for level in takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))]
