"""A report as plain text: a table of fixed width for 120 columns, without colours, so that it can be piped."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from jetvit.report_rows import SiteRow

if TYPE_CHECKING:
    from jetvit.explain import Report

WIDTH = 120
LEGEND = (
    "drift: how far the model's output moves if this site alone is changed (0: not at all, 1: as far off as its "
    "mean). ms: latency of this attention alone."
)
_NAME_WIDTH, _LEAST_NAME_WIDTH = 40, 12
_GAP = "  "
_INDENT = "    "


def render(report: Report) -> str:
    """The whole report, without a line break at the end."""
    lines = [plain(report.model)]
    lines += [f"input {plain(line)}" for line in input_lines(report)]
    if report.rows:
        lines += ["", *_table(report.rows)]
    if any(row.measured for row in report.rows):
        lines += ["", *textwrap.wrap(LEGEND, WIDTH)]
    lines += ["", *_sentences(report)]
    return "\n".join(line.rstrip() for line in lines)


def input_lines(report: Report) -> list[str]:
    """Each input as "pixel_values [B, 3, H, W] float32"."""
    return [f"{name} [{', '.join(map(str, shape))}] {dtype}" for name, shape, dtype in report.inputs]


def totals_lines(report: Report) -> list[str]:
    """What the report comes to, in sentences."""
    return [line for lines in (_counts(report), _latency(report), _drift(report)) for line in lines]


def common_prefix(rows: Sequence[SiteRow]) -> str:
    """What every name starts with, to the last dot: "model.layer." of model.layer.0.attn and model.layer.1.attn."""
    if len(rows) < 2:
        return ""
    levels = zip(*(row.name.split(".")[:-1] for row in rows), strict=False)
    shared = takewhile(lambda level: len(set(level)) == 1, levels)
    return "".join(f"{level[0]}." for level in shared)


def shared_traits(rows: Sequence[SiteRow]) -> dict[str, str]:
    """The traits that all found sites have in common, field → words; they need no column."""
    found = [row for row in rows if row.status == "found"]
    values = {trait: {getattr(row, trait) for row in found} for trait in _TRAITS}
    return {trait: _TRAITS[trait](*only) for trait, only in values.items() if len(only) == 1}


def plain(text: str) -> str:
    """Text without control characters: names and reasons come from files of strangers and go to terminals."""
    return "".join(char if char.isprintable() else " " for char in text)


def shorten(text: str, width: int) -> str:
    """At most `width` characters: the middle makes way for an ellipsis."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def number(value: float | None) -> str:
    """Three significant digits; "–" for None."""
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def counted(count: int, thing: str) -> str:
    """ "1 site", "2 sites"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


_TRAITS: dict[str, Callable[[str | None], str]] = {
    "dtype": str,
    "rope": lambda rope: f"RoPE {rope}" if rope else "no RoPE",
    "form": lambda form: "SDPA" if form == "sdpa" else "softmax between two products",
    "projections": "{} q, k, v".format,
}


@dataclass(frozen=True)
class _Column:
    title: str
    cells: list[str]
    right: bool = False

    @property
    def width(self) -> int:
        return max(map(len, (self.title, *self.cells)))

    def fit(self, cell: str) -> str:
        return cell.rjust(self.width) if self.right else cell.ljust(self.width)


def _table(rows: Sequence[SiteRow]) -> Iterator[str]:
    prefix, shared = common_prefix(rows), shared_traits(rows)
    if prefix:
        yield f"every name starts with {plain(prefix)}"
    if shared:
        yield f"every site found: {', '.join(shared.values())}"
    if prefix or shared:
        yield ""
    columns = _columns(rows, prefix, shared)
    footnotes = _add_reasons(columns, rows)
    overhang = _width(columns) - WIDTH
    if overhang > 0:
        room = max(columns[0].width - overhang, _LEAST_NAME_WIDTH)
        columns[0] = _Column("site", [shorten(cell, room) for cell in columns[0].cells])
    yield _GAP.join(column.fit(column.title) for column in columns)
    for index, row in enumerate(rows):
        if row.status == "refused":
            yield from _refusal(columns[0].cells[index], row)
        else:
            yield _GAP.join(column.fit(column.cells[index]) for column in columns)
    if footnotes:
        yield ""
        for footnote in footnotes:
            yield from textwrap.wrap(footnote, WIDTH, subsequent_indent=_INDENT)


def _add_reasons(columns: list[_Column], rows: Sequence[SiteRow]) -> list[str]:
    """Add the column "why", and return the footnotes that it points to where the reasons themselves are too wide."""
    reasons = list(dict.fromkeys(row.why for row in rows if row.why))
    if not reasons:
        return []
    column = _Column("why", [plain(row.why) for row in rows])
    footnotes: list[str] = []
    if _width([*columns, column]) > WIDTH:
        marks = {reason: f"[{index}]" for index, reason in enumerate(reasons, start=1)}
        column = _Column("why", [marks.get(row.why, "") for row in rows])
        footnotes = [f"{mark} {plain(reason)}" for reason, mark in marks.items()]
    columns.append(column)
    return footnotes


def _width(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + len(_GAP) * (len(columns) - 1)


def _columns(rows: Sequence[SiteRow], prefix: str, shared: Mapping[str, str]) -> list[_Column]:
    """The columns of a table; the cells of refused rows stay empty but for the name."""
    there = [row for row in rows if row.status != "refused"]

    def column(title: str, cell: Callable[[SiteRow], str], right: bool = False) -> _Column:
        return _Column(title, ["" if row.status == "refused" else plain(cell(row)) for row in rows], right)

    columns = [_Column("site", [shorten(plain(row.name.removeprefix(prefix)), _NAME_WIDTH) for row in rows])]
    if not there:
        return columns
    columns += [
        column("tokens", lambda row: str(row.tokens), right=True),
        column("grid", lambda row: str(row.grid), right=True),
        column("extra tokens", extra_text),
        column("heads×dim", lambda row: f"{row.num_heads}×{row.head_dim}", right=True),
    ]
    if any(row.status == "found" for row in rows):
        columns += [column(trait, _or_dash(trait)) for trait in _TRAITS if trait not in shared]
    if any(row.measured or row.decision != "full" for row in there):
        columns.append(column("decision", decision_text))
    if any(row.measured for row in there):
        columns += [
            column("drift", lambda row: number(row.drift), right=True),
            column("full ms", lambda row: number(row.full_ms), right=True),
            column("now ms", lambda row: number(row.chosen_ms), right=True),
        ]
    return columns


def _or_dash(trait: str) -> Callable[[SiteRow], str]:
    return lambda row: getattr(row, trait) or "–"


def _refusal(name: str, row: SiteRow) -> Iterator[str]:
    yield f"{name}{_GAP}refused"
    yield from textwrap.wrap(plain(row.reason), WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    where = f"node {plain(row.node)}"
    if row.source:
        path, found, code = plain(row.source).partition(": ")
        where += f", {_short_path(path)}{found}{code}"
    line = _INDENT + where
    yield line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def _short_path(path: str) -> str:
    """The last folders of a source file are enough to find it."""
    parts = path.replace("\\", "/").split("/")
    return path if len(parts) <= 4 else "…/" + "/".join(parts[-3:])


def extra_text(row: SiteRow) -> str:
    """Extra tokens as "5 before", "2 before, 3 after" the grid, or "none"."""
    counts = ((row.extra_before, "before"), (row.extra_after, "after"))
    return ", ".join(f"{count} {where}" for count, where in counts if count != 0) or "none"


def decision_text(row: SiteRow) -> str:
    """The decision; of a rewritten site, that it is done."""
    return f"{row.decision} (done)" if row.status == "rewritten" else row.decision or ""


def _sentences(report: Report) -> Iterator[str]:
    for line in totals_lines(report):
        yield from textwrap.wrap(line, WIDTH, subsequent_indent="  ")
    for label, sentences in (("warning", report.warnings), ("note", report.notes)):
        for sentence in sentences:
            yield from textwrap.wrap(f"{label}: {plain(sentence)}", WIDTH, subsequent_indent="  ")


def _counts(report: Report) -> Iterator[str]:
    totals = report.totals
    if not report.rows:
        yield "No attention was found in this model."
        return
    parts = [f"{totals.found} can be rewritten", f"{totals.refused} refused"]
    if totals.rewritten:
        parts.append(f"{totals.rewritten} rewritten already")
    yield f"{counted(len(report.rows), 'attention site')}: {', '.join(parts)}."
    if report.plan is None:
        if totals.found:
            yield "No plan was given: every site keeps full attention."
        return
    if totals.rewritten and not totals.changed:
        yield "The plan has nothing left to change."
        return
    labels = [row.decision for row in report.rows if row.status == "found" and row.decision != "full"]
    tally = ", ".join(f"{labels.count(label)} {label}" for label in dict.fromkeys(labels))
    yield f"The plan changes {totals.changed} of {counted(totals.found, 'site')}{': ' if tally else ''}{tally}."


def _latency(report: Report) -> Iterator[str]:
    totals, plan = report.totals, report.plan
    full, chosen = totals.latency_full_ms, totals.latency_chosen_ms
    if plan is None or full is None or chosen is None:
        return
    faster = f" ({full / chosen:.2f}×)" if chosen else ""
    sites = f"{totals.measured} of {totals.found} sites" if totals.measured < totals.found else "all sites"
    version = f"torch {plan.torch}" if plan.torch else None
    where = ", ".join(each for each in (plan.device, plan.dtype, plan.measured_size, version) if each)
    measured = f", measured on {plain(where)}" if where else ""
    yield f"Attention alone, summed over {sites}: {number(full)} ms → {number(chosen)} ms{faster}{measured}."


def _drift(report: Report) -> Iterator[str]:
    plan = report.plan
    if plan is None:
        return
    parts = []
    for drift, images, what in (
        (plan.joint_drift_selection, plan.images_selection, "of the selection"),
        (plan.joint_drift_held_out, plan.images_held_out, "held out"),
    ):
        if drift is not None:
            parts.append(f"{number(drift)} on {'images' if images is None else counted(images, 'image')} {what}")
    limit = f"; at most {number(plan.max_drift)} was asked for" if plan.max_drift is not None else ""
    if parts:
        yield f"Drift of the model's output, all changes together: {', '.join(parts)}{limit}."
