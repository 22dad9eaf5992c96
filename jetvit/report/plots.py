"""The pictures of a report: what each choice costs at each site, the front of plans, and a plain strip of sites.

Each function makes a matplotlib figure; `svg` turns it into text for the inside of a page. Nothing here touches pyplot
or the reader's matplotlib settings, and equal reports give equal bytes.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from html import escape

from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jetvit.patterns.wording import counted
from jetvit.report.plan import PlanSummary
from jetvit.report.rows import SiteRow
from jetvit.report.text import common_prefix
from jetvit.report.words import number, plain, shorten, sorted_labels

# Stand-ins that `svg` replaces with the page's own colours, which differ by day and night.
INK, MUTED, PAPER = "#111112", "#777778", "#fefefd"
THEME = {INK: "var(--ink)", MUTED: "var(--muted)", PAPER: "var(--paper)"}
# Dark enough for white letters, and light enough to be seen on a dark page.
KINDS = {"full": "#3a6ea5", "window": "#1b7a3d", "linear": "#b3404a", "refused": "#6b6b6b"}

STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
    "svg.hashsalt": "jetvit",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that the layout is the same everywhere
    "font.size": 9,
    "text.parse_math": False,  # a dollar in a site's name is a dollar
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.formatter.useoffset": False,  # a tick is the number itself,
    "axes.formatter.limits": (-9, 12),  # and has no power of ten
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_CELL_WIDTH, _CELL_HEIGHT, _BAR = 1.1, 0.28, 0.14  # inches
_LOWEST, _HIGHEST = 1e-4, 1.0  # the same colours in every report; what lies outside takes the colour of the end
_TICKS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
_COLOURS, _NORM = colormaps["viridis_r"], LogNorm(_LOWEST, _HIGHEST, clip=True)
_NAME_WIDTH = 24
_STRIP = 12  # sites a line: what a phone shows
_LABELS = 10  # points of a front that carry their number


def choice_map(rows: Sequence[SiteRow]) -> Figure:
    """Sites down, choices across: the drift of each choice alone, coloured on a log scale, the decision outlined."""
    labels = choice_labels(rows)
    with style.context(["default", STYLE]):
        width, height = _CELL_WIDTH * len(labels), _CELL_HEIGHT * len(rows)
        figure = Figure(figsize=(width + 4, height + 1.5))
        axes = figure.add_axes(_inches(figure, 2.3, 0.1, width, height))
        for y, row in enumerate(rows):
            for x, label in enumerate(labels):
                _cell(axes, x, y, row, label)
        axes.set_xticks([x + 0.5 for x in range(len(labels))], [_heading(label, rows) for label in labels])
        axes.set_yticks([y + 0.5 for y in range(len(rows))], short_names(rows))
        _bare(axes, (0, len(labels)), (len(rows), 0))
        length = min(max(height, 1.4), 2.6)
        bar = figure.add_axes(_inches(figure, 2.3 + width + 0.25, 0.1 + height - length, _BAR, length))
        # Few enough colours that matplotlib draws them as shapes, not as an embedded picture, which the page forbids.
        scale = figure.colorbar(ScalarMappable(_NORM, _COLOURS.resampled(40)), cax=bar, extend="both")
        scale.set_ticks(_TICKS, labels=[f"{tick:g}" for tick in _TICKS], minor=False)
        scale.minorticks_off()
        scale.set_label("drift (log scale)")
        scale.outline.set_visible(False)
    return figure


def front(plan: PlanSummary) -> Figure:
    """Drift over latency of every plan measured on the way, with the number of changed sites; this plan is marked."""
    timed = any(point.latency_ms is not None for point in plan.front)
    shown = [
        (float(point.changed) if latency is None else latency, point.drift, point.changed, index == plan.chosen)
        for index, point in enumerate(plan.front)
        if (latency := point.latency_ms) is not None or not timed
    ]
    shown.sort(key=lambda point: point[2])
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(5, 3.8), layout="constrained")  # inches: readable on a phone, too
        axes = figure.subplots()
        best = _undominated([(x, y) for x, y, *_ in shown])
        axes.plot([x for x, *_ in shown], [y for _, y, *_ in shown], "o", color=KINDS["full"], markersize=4, alpha=0.4)
        axes.plot(*zip(*best, strict=True), "-o", color=KINDS["full"], markersize=4)
        labelled = [point for point in shown if point[3] or point[:2] in best]
        last = len(labelled) - 1
        numbered = {round(last * each / (_LABELS - 1)) for each in range(_LABELS)}
        for index, (x, y, changed, chosen) in enumerate(labelled):
            if chosen:
                name = f"this plan: {counted(changed, 'site')} changed"
                axes.plot([x], [y], "D", color=KINDS["linear"], markersize=9, zorder=3, label=name)
            elif index in numbered:
                axes.annotate(str(changed), (x, y), (-3, -5), textcoords="offset points", ha="right", va="top")
        if plan.max_drift is not None:
            name = f"limit {number(plan.max_drift)}"
            axes.axhline(plan.max_drift, linestyle="--", color=KINDS["linear"], linewidth=1, label=name)
        if handles := axes.get_legend_handles_labels()[0]:
            figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False)
        axes.set_xlabel("latency of all attention together (ms)" if timed else "sites changed")
        axes.set_ylabel("drift of the model's output")
        highest = max([y for _, y, *_ in shown] + [plan.max_drift or 0.0])
        axes.set_ylim(-0.08 * (highest or 1), 1.08 * (highest or 1))  # room for the labels below the points
        axes.margins(x=0.08)
        axes.grid(color=MUTED, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _undominated(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other is both faster and closer than, in the order of x: the front itself."""
    kept: list[tuple[float, float]] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def strip(rows: Sequence[SiteRow]) -> Figure:
    """One square a site in the order of execution, numbered from 1, coloured and lettered by kind."""
    lines = -(-len(rows) // _STRIP)
    columns = min(len(rows), _STRIP)
    with style.context(["default", STYLE]):
        width, height = 0.42 * columns, 0.62 * lines
        figure = Figure(figsize=(width + 0.2, height + 0.2))
        axes = figure.add_axes(_inches(figure, 0.1, 0.1, width, height))
        for index, row in enumerate(rows):
            x, y = index % _STRIP, index // _STRIP
            kind = kind_of(row)
            axes.add_patch(Rectangle((x + 0.05, y + 0.32), 0.9, 0.62, facecolor=KINDS[kind], edgecolor="none"))
            axes.text(x + 0.5, y + 0.63, kind[0].upper(), ha="center", va="center", color="#ffffff", weight="bold")
            axes.text(x + 0.5, y + 0.16, str(index + 1), ha="center", va="center", fontsize=7.5)
        _bare(axes, (0, columns), (lines, 0))
        axes.set_axis_off()
    return figure


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element for the inside of a page, in the page's colours.

    Args:
        figure: a figure of this module.
        name: letters that no other picture of the page has; its ids start with them.
        description: what a reader who does not see the picture is told.
    """
    stream = io.StringIO()
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has fonts for what this one lacks
        figure.savefig(stream, format="svg", metadata=_NO_METADATA, bbox_inches="tight", pad_inches=0.08)
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)  # would style the page
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", text, count=3)  # known inside of HTML
    text = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    for colour, variable in THEME.items():
        text = text.replace(colour, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)


def choice_labels(rows: Sequence[SiteRow]) -> list[str]:
    """Every label that was measured or decided anywhere: "full", then windows by size, then linear attention."""
    return sorted_labels(["full", *(label for row in rows for label in (*row.measured, row.decision) if label)])


def kind_of(row: SiteRow) -> str:
    """full", "window", "linear" or "refused"."""
    return "refused" if row.decision is None else row.decision.split()[0]


def short_names(rows: Sequence[SiteRow]) -> list[str]:
    """The names of the sites without what all start with."""
    prefix = common_prefix(rows)
    return [shorten(plain(row.name.removeprefix(prefix)), _NAME_WIDTH) for row in rows]


def _cell(axes: Axes, x: int, y: int, row: SiteRow, label: str) -> None:
    """One cell of the map. Full attention has no drift, and so no colour."""
    measured = row.measured.get(label)
    drift = 0.0 if label == "full" else measured.drift if measured is not None else None
    text, face, ink, opacity = "not measured", MUTED, INK, 0.15
    if drift is not None:
        colour = _COLOURS(_NORM(max(drift, _LOWEST)))
        text, face, ink, opacity = number(drift), to_hex(colour), _readable_on(colour), 1.0
    if label == "full":
        face, ink = PAPER, INK
    axes.add_patch(Rectangle((x + 0.05, y + 0.1), 0.9, 0.8, facecolor=face, edgecolor="none", alpha=opacity))
    chosen = label == row.decision
    if chosen:
        axes.add_patch(Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, fill=False, edgecolor=INK, linewidth=2))
    axes.text(
        x + 0.5, y + 0.5, text, ha="center", va="center", color=ink,
        size=8 if drift is None else 9, weight="bold" if chosen else "normal",
    )  # fmt: skip


def _readable_on(colour: tuple[float, float, float, float]) -> str:
    red, green, blue, _ = colour
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"


def _heading(label: str, rows: Sequence[SiteRow]) -> str:
    """A choice and its latency over the sites: "window 16x16, 0.41–0.52 ms" on short lines."""
    times = [row.measured[label].latency_ms for row in rows if label in row.measured]
    known = [time for time in times if time is not None]
    ends = list(dict.fromkeys(number(time) for time in (min(known), max(known)))) if known else []
    return "\n".join([*textwrap.wrap(plain(label), 13), f"{'–'.join(ends)} ms" if ends else "not timed"])


def _inches(
    figure: Figure, left: float, bottom: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """The place of axes in inches, as matplotlib wants it."""
    across, up = figure.get_size_inches()
    return left / across, bottom / up, width / across, height / up


def _bare(axes: Axes, across: tuple[float, float], down: tuple[float, float]) -> None:
    axes.set_xlim(*across)
    axes.set_ylim(*down)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
