"""The picture of a latency table's answers: what one attention takes by what it becomes, with its intervals."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jetvit.patterns.wording import counted
from jetvit.report.plots import INK, KINDS, STYLE
from jetvit.report.rows import SiteRow
from jetvit.report.words import latency_text, plain, shorten, sorted_labels

_PANELS = 4  # groups of sites; of more of them the table beside the picture tells
_BAR, _BAR_WIDTH, _TITLE = 0.26, 2.2, 0.55  # inches
_NAME_WIDTH = 36


def bars(groups: Sequence[Sequence[SiteRow]]) -> Figure:
    """One panel a group of sites (`alike`): a bar a choice, pale where it was predicted, and its interval as a line."""
    shown = groups[:_PANELS]
    heights = [_BAR * len(_timed(group[0])) + _TITLE for group in shown]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(5, sum(heights)))
        top = sum(heights)
        for group, height in zip(shown, heights, strict=True):
            top -= height
            place = (1.5, top, _BAR_WIDTH, height - _TITLE)
            across, up = figure.get_size_inches()
            axes = figure.add_axes((place[0] / across, place[1] / up, place[2] / across, place[3] / up))
            _panel(axes, group)
    return figure


def _panel(axes: Axes, group: Sequence[SiteRow]) -> None:
    first, *others = group
    labels = _timed(first)
    for y, label in enumerate(labels):
        one = first.measured[label]
        latency_ms = one.latency_ms or 0.0
        low, high = (latency_ms if end is None else end for end in (one.low_ms, one.high_ms))
        opacity = 0.5 if one.source == "predicted" else 1.0
        axes.barh([y], [latency_ms], height=0.7, color=KINDS[label.split()[0]], alpha=opacity)
        axes.plot([low, high], [y, y], color=INK, linewidth=1)
        axes.annotate(latency_text(one), (high, y), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(labels)), [plain(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    more = f"and {counted(len(others), 'more site')}, " if others else ""
    axes.set_title(f"{shorten(plain(first.name), _NAME_WIDTH)}\n{more}latency (ms)", loc="left", fontsize=9)


def _timed(row: SiteRow) -> list[str]:
    return [label for label in sorted_labels(row.measured) if row.measured[label].latency_ms is not None]
