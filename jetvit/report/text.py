"""A report as plain text: a table of fixed width for 120 columns, without colours, so that it can be piped."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from jetvit.patterns.wording import counted
from jetvit.report.content import ReportContent
from jetvit.report.rows import SiteRow
from jetvit.report.sentences import input_lines, legend, totals_lines
from jetvit.report.words import (
    alike,
    decision_text,
    extra_text,
    latency_text,
    number,
    plain,
    shorten,
    sorted_labels,
)

WIDTH = 120
_NAME_WIDTH, _LEAST_NAME_WIDTH = 40, 12
_GAP = "  "
_INDENT = "    "


def render(report: ReportContent) -> str:
    """The whole report, without a line break at the end."""
    lines = [plain(report.model)]
    lines += [f"input {plain(line)}" for line in input_lines(report)]
    if report.rows:
        lines += ["", *_table(report.rows, planned=report.table is None or report.plan is not None)]
    if any(row.measured for row in report.rows):
        lines += ["", *textwrap.wrap(legend(report), WIDTH)]
    if report.table is not None:
        lines += _choices(report.rows)
    lines += ["", *_sentences(report)]
    return "\n".join(line.rstrip() for line in lines)


def common_prefix(rows: Sequence[SiteRow]) -> str:
    """The common start of all names, to the last dot: "model.layer." of model.layer.0.attn and model.layer.1.attn."""
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


def _table(rows: Sequence[SiteRow], planned: bool) -> Iterator[str]:
    """The lines of the table. planned: there may be decisions and drifts, and not latencies of a table alone."""
    prefix, shared = common_prefix(rows), shared_traits(rows)
    if prefix:
        yield f"every name starts with {plain(prefix)}"
    if shared:
        yield f"every site found: {', '.join(shared.values())}"
    if prefix or shared:
        yield ""
    columns = _columns(rows, prefix, shared, planned)
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


def _columns(rows: Sequence[SiteRow], prefix: str, shared: Mapping[str, str], planned: bool) -> list[_Column]:
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
    if any((planned and row.measured) or row.decision != "full" for row in there):
        columns.append(column("decision", decision_text))
    if any(row.measured for row in there):
        full = column("full ms", lambda row: latency_text(row.measured.get("full")), right=True)
        drift = column("drift", lambda row: number(row.drift), right=True)
        chosen = column("now ms", lambda row: latency_text(row.measured.get(row.decision or "full")), right=True)
        columns += [drift, full, chosen] if planned else [full]
    return columns


def _choices(rows: Sequence[SiteRow]) -> Iterator[str]:
    """The latency of every choice, once for all sites where it is the same."""
    prefix, groups = common_prefix(rows), alike(rows)
    if not groups:
        return
    yield ""
    yield "latency of one attention alone in ms, by what it becomes"
    for first, *others in groups:
        more = f" and {counted(len(others), 'more site')}" if others else ""
        yield f"  {shorten(plain(first.name.removeprefix(prefix)), _NAME_WIDTH)}{more}"
        labels = sorted_labels(first.measured)
        width = max(len(plain(label)) for label in labels)
        for label in labels:
            yield f"{_INDENT}{plain(label):<{width}}{_GAP}{latency_text(first.measured[label])}"


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


def _sentences(report: ReportContent) -> Iterator[str]:
    for line in totals_lines(report):
        yield from textwrap.wrap(line, WIDTH, subsequent_indent="  ")
    for label, sentences in (("warning", report.warnings), ("note", report.notes)):
        for sentence in sentences:
            yield from textwrap.wrap(f"{label}: {plain(sentence)}", WIDTH, subsequent_indent="  ")
