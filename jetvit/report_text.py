"""A report as plain text: a table of fixed width for 120 columns, without colours, so that it can be piped."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from jetvit.report_rows import SiteRow

if TYPE_CHECKING:
    from jetvit.explain import Report

WIDTH = 120
_NAME_WIDTH = 40
_WHY_WIDTH = 24
_GAP = "  "


def render(report: Report) -> str:
    """The whole report, without a line break at the end."""
    lines = [plain(report.model)]
    lines += [f"input {plain(line)}" for line in input_lines(report)]
    if report.rows:
        lines += ["", *_table(report.rows)]
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
    return {trait: _TRAITS[trait](only.pop()) for trait, only in values.items() if len(only) == 1}


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


_TRAITS = {
    "dtype": str,
    "rope": lambda rope: f"RoPE {rope}" if rope else "no RoPE",
    "form": {"sdpa": "SDPA", "softmax": "softmax between two products"}.__getitem__,
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
    columns = _columns(rows, prefix, [trait for trait in _TRAITS if trait not in shared])
    left = sum(column.width + len(_GAP) for column in columns)
    explained = any(row.why for row in rows)
    room = max(WIDTH - left, _WHY_WIDTH)
    yield ""
    yield _GAP.join([column.fit(column.title) for column in columns] + (["why"] if explained else []))
    for index, row in enumerate(rows):
        if row.status == "refused":
            yield from _refusal(columns[0].cells[index], row)
            continue
        line = _GAP.join(column.fit(column.cells[index]) for column in columns)
        why, *more = textwrap.wrap(plain(row.why), room) or [""]
        yield f"{line}{_GAP}{why}"
        yield from (" " * left + each for each in more)


def _columns(rows: Sequence[SiteRow], prefix: str, traits: list[str]) -> list[_Column]:
    names = [shorten(plain(row.name.removeprefix(prefix)), _NAME_WIDTH) for row in rows]
    columns = [
        _Column("site", names),
        _Column("tokens", [str(row.tokens) for row in rows], right=True),
        _Column("grid", [str(row.grid) for row in rows], right=True),
        _Column("extra", [extra_text(row) for row in rows], right=True),
        _Column("heads×dim", [f"{row.num_heads}×{row.head_dim}" for row in rows], right=True),
        *(_Column(trait, [str(getattr(row, trait) or "–") for row in rows]) for trait in traits),
    ]
    if any(row.measured or row.decision not in (None, "full") for row in rows):
        columns.append(_Column("decision", [decision_text(row) for row in rows]))
    if any(row.measured for row in rows):
        columns += [
            _Column("drift", [number(_drift_of(row)) for row in rows], right=True),
            _Column("full ms", [number(row.full_ms) for row in rows], right=True),
            _Column("now ms", [number(row.chosen_ms) for row in rows], right=True),
        ]
    return columns


def _refusal(name: str, row: SiteRow) -> Iterator[str]:
    yield f"{name}{_GAP}refused"
    yield from textwrap.wrap(plain(row.reason), WIDTH, initial_indent="    ", subsequent_indent="    ")
    where = f"node {plain(row.node)}"
    if row.source:
        path, found, code = plain(row.source).partition(": ")
        where += f", {_short_path(path)}{found}{code}"
    yield f"    {where if len(where) <= WIDTH - 4 else where[: WIDTH - 5] + '…'}"


def _short_path(path: str) -> str:
    """The last folders of a source file are enough to find it."""
    parts = path.replace("\\", "/").split("/")
    return path if len(parts) <= 4 else "…/" + "/".join(parts[-3:])


def extra_text(row: SiteRow) -> str:
    """Extra tokens as "5+0": before and after the grid."""
    return f"{row.extra_before}+{row.extra_after}"


def decision_text(row: SiteRow) -> str:
    """The decision; of a rewritten site, that it is done."""
    return f"{row.decision} (done)" if row.status == "rewritten" else row.decision or ""


def _drift_of(row: SiteRow) -> float | None:
    if row.decision == "full":
        return 0.0
    return row.measured[row.decision].drift if row.decision in row.measured else None


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
    yield f"{counted(len(report.rows), 'attention')}: {', '.join(parts)}."
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
