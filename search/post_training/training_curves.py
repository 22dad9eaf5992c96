"""The losses of a search's stages as pictures, after Fig. 5 of the paper (arXiv 2605.26636)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jetvit.search.post_training.figures import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    STYLE,
    VERMILLION,
    new_figure,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def training_figure(losses: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the losses of each stage, smoothed over the raw ones."""
    columns = min(3, len(losses))
    rows = math.ceil(len(losses) / columns)
    figure = new_figure(2.7 * rows + 0.5)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, (stage, values) in zip(panels, losses.items(), strict=False):
        _curve(panel, values, BLUE)
        _loss_axes(panel, values, stage.replace("_", " "))
    for panel in panels[len(losses) :]:
        panel.set_visible(False)
    figure.suptitle("Losses of the stages: each step, and smoothed")
    return figure


def draw_curves(curves: Mapping[str, Sequence[float]], path: str | os.PathLike[str], title: str) -> None:
    """Write a PNG with the losses of several trainings in one panel, step by step, by what each is called."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        figure = new_figure(5)
        axes = figure.subplots()
        colours = cycle([BLUE, VERMILLION, GREEN, PURPLE, ORANGE, "black"])
        for (name, losses), colour in zip(curves.items(), colours, strict=False):
            _curve(axes, losses, colour, name)
        _loss_axes(axes, [loss for losses in curves.values() for loss in losses], title)
        axes.legend()
        save_figure(figure, Path(path))


def smoothed(losses: Sequence[float]) -> np.ndarray:
    """Means over a twentieth of the steps; at the ends, over what there is of it."""
    window = np.ones(max(1, len(losses) // 20))
    return np.convolve(losses, window, "same") / np.convolve(np.ones(len(losses)), window, "same")


def _curve(axes: Axes, losses: Sequence[float], colour: str, name: str = "") -> None:
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps, smoothed(losses), color=colour, linewidth=1.8, label=name)


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
