"""A report as one HTML file: table and pictures inline, no scripts, nothing fetched, for light and dark screens.

Nothing is wider than the window, from that of a phone on, but what scrolls in a box of its own.

Names, reasons and provenance come from models and plans of strangers: every text goes through `_text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from jetvit.report import plots as plots
from jetvit.report.bars import bars
from jetvit.report.content import ReportContent
from jetvit.report.rows import SiteRow
from jetvit.report.sentences import input_lines, legend, totals_lines
from jetvit.report.words import alike, decision_text, extra_text, latency_text, number, plain

# The policy stands even if a name should slip through unescaped: no script runs and nothing is loaded.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
"""
_CSS = """
:root {
  color-scheme: light dark;
  --ink: #1b1b1f; --muted: #6a6a72; --paper: #ffffff; --line: #d8d8de; --alarm: #a33a00
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ec; --muted: #9a9aa4; --paper: #17171b; --line: #3a3a42; --alarm: #ff9d66 }
}
body { margin: 2rem auto; max-width: 96rem; padding: 0 1rem; font: 16px/1.45 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere }
h1 { margin-bottom: 0; font-size: 1.6rem; line-height: 1.2 }
.inputs, figcaption, .legend, th { color: var(--muted) }
.warning { border-left: .25rem solid var(--alarm); padding-left: .75rem }
.wide { overflow-x: auto; overflow-wrap: normal; background:
  local linear-gradient(90deg, var(--paper) 1rem, transparent) left / 2rem 100% no-repeat,
  local linear-gradient(270deg, var(--paper) 1rem, transparent) right / 2rem 100% no-repeat,
  linear-gradient(90deg, var(--line), transparent) left / .75rem 100% no-repeat,
  linear-gradient(270deg, var(--line), transparent) right / .75rem 100% no-repeat }
figure { margin: 1.5rem 0 }
svg, img { display: block }
.fit svg, .fit img { max-width: 100%; height: auto }
.wide img { width: 62.5rem; max-width: max(100%, 44rem); height: auto }
svg * { stroke-linejoin: round; stroke-linecap: butt }
svg text { font-family: "DejaVu Sans", Verdana, sans-serif !important }
table { border-collapse: collapse; font-size: .875rem }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th, td { white-space: nowrap }
.words { min-width: 18rem; white-space: normal; overflow-wrap: anywhere }
tbody th { color: var(--ink); font-weight: 600 }
.number { text-align: right; font-variant-numeric: tabular-nums }
.refused { color: var(--alarm) }
"""
_MAP = (
    "Drift of each choice alone at each site, every other site being full attention. Under each choice: the latency of "
    "this attention alone. Outlined and bold: what the plan does. Grey: not measured."
)
_FRONT = (
    "Plans that were measured on the way to this one, each with all its changes together. The number at a point is "
    "that of the sites it changes; the line joins the plans that no other beats in both."
)
_BARS = (
    "Latency of one attention alone by what it becomes, once for all sites where it is the same. Pale: predicted. The "
    "thin line is the interval: the quartiles of what was measured, 90 % of what was predicted."
)
_RECORDED = " Its latencies are those that the plan recorded, and no table's."
_LONG_NAME = 36  # characters that stand in one line
_STRIP = "Every attention site in order: F full, W window, L linear, R refused."


def page(report: ReportContent) -> str:
    """Return the whole file."""
    return document(report.model, [f"<h1>{_text(report.model)}</h1>", *report_parts(report)])


def report_parts(report: ReportContent) -> list[str]:
    """Return what stands below the heading of the page, as HTML."""
    return [
        f'<p class="inputs">input {_text(", ".join(input_lines(report)))}</p>' if report.inputs else "",
        *(f"<p>{_text(line)}</p>" for line in totals_lines(report)),
        *(f'<p class="warning" role="note"><strong>Warning:</strong> {_text(line)}</p>' for line in report.warnings),
        *_pictures(report),
        *_sites(report),
        *_measurements(report.rows),
        *(f"<p>{_text(line)}</p>" for line in report.notes),
    ]


def document(title: str, parts: Iterable[str]) -> str:
    """Return a whole HTML file of parts that are HTML already, under a title that is not."""
    body = "\n".join(part for part in parts if part)
    head = f"{_HEAD}<title>jetvit: {_text(title)}</title>\n<style>{_CSS}</style>\n</head>"
    return f"{head}\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"


def _text(value: object) -> str:
    return escape(plain(str(value)))


def _pictures(report: ReportContent) -> Iterable[str]:
    if not report.rows:
        return
    if report.table is not None and (groups := alike(report.rows)):
        description = f"{_BARS} The table of measurements below has the same numbers."
        yield _figure(plots.svg(bars(groups), "bars", description), _BARS, "fit")
    if not any(_mapped(row, report) for row in report.rows):
        tally = ", ".join(f"{index} {plots.kind_of(row)}" for index, row in enumerate(report.rows, start=1))
        yield _figure(plots.svg(plots.strip(report.rows), "strip", f"Sites by number: {tally}."), _STRIP, "fit")
        return
    sites = [row for row in report.rows if row.status == "found"]
    description = f"{_MAP} The table of measurements below has the same numbers."
    yield _figure(plots.svg(plots.choice_map(sites), "map", description), _MAP)
    if report.plan is not None and report.plan.front:
        points = "; ".join(
            f"{point.changed} changed, drift {number(point.drift)}, {number(point.latency_ms)} ms"
            for point in report.plan.front
        )
        caption = _FRONT + (_RECORDED if report.table is not None else "")
        picture = plots.svg(plots.front(report.plan), "front", f"Drift over latency. {points}.")
        yield _figure(picture, caption, "fit")


def _mapped(row: SiteRow, report: ReportContent) -> bool:
    """Report whether the map shows anything of a site: without a drift a table's latencies have no colours."""
    known = [one.drift for one in row.measured.values()]
    return bool(known) if report.table is None else any(drift is not None for drift in known)


def _figure(picture: str, caption: str, box: str = "wide") -> str:
    """A picture in a box that it scrolls in ("wide"), or whose width it takes where that is less ("fit")."""
    return f'<figure>\n<div class="{box}">{picture}</div>\n<figcaption>{_text(caption)}</figcaption>\n</figure>'


def _sites(report: ReportContent) -> Iterable[str]:
    if not report.rows:
        return
    numbers = {"#", "tokens", "grid", "heads×dim", "drift", "full ms", "now ms"}
    titles = (
        *("#", "site", "tokens", "grid", "extra tokens", "heads×dim", "dtype", "RoPE", "form", "projections"),
        *("decision", "drift", "full ms", "now ms", "why"),
    )
    kinds = {title: "number" if title in numbers else "words" if title == "why" else "" for title in titles}
    head = "".join(_cell(title, "th", kinds[title], ' scope="col"') for title in titles)
    rows = []
    for index, row in enumerate(report.rows, start=1):
        first = _cell(index, "td", "number") + _name(row.name)
        if row.status == "refused":
            where = f"node {row.node}" + (f", {row.source}" if row.source else "")
            reason = f'<span class="refused">refused:</span> {_text(row.reason)}<br>{_text(where)}'
            rows.append(f'{first}<td class="words" colspan="{len(titles) - 2}">{reason}</td>')
            continue
        cells = zip(titles[2:], _values(row), strict=True)
        rows.append(first + "".join(_cell(value, "td", kinds[title]) for title, value in cells))
    yield "<h2>Sites</h2>"
    yield _table(head, rows)
    yield f'<p class="legend">{_text(legend(report))}</p>' if any(row.measured for row in report.rows) else ""


def _values(row: SiteRow) -> tuple[object, ...]:
    return (
        *(row.tokens, row.grid, extra_text(row), f"{row.num_heads}×{row.head_dim}", row.dtype),
        *(row.rope or "–", row.form or "–", row.projections or "–"),
        *(decision_text(row), number(row.drift)),
        *(latency_text(row.measured.get("full")), latency_text(row.measured.get(row.decision or "full")), row.why),
    )


def _measurements(rows: Iterable[SiteRow]) -> Iterable[str]:
    """The numbers of the map as a table, for those who do not see it."""
    measured = [row for row in rows if row.measured]
    if not measured:
        return
    labels = plots.choice_labels(measured)
    head = '<th scope="col">site</th>' + "".join(_cell(label, "th", "number", ' scope="col"') for label in labels)
    lines = []
    for row in measured:
        cells = [
            f"{number(row.measured[label].drift)} / {latency_text(row.measured[label])} ms"
            if label in row.measured
            else "–"
            for label in labels
        ]
        lines.append(_name(row.name) + "".join(_cell(cell, "td", "number") for cell in cells))
    yield f"<details>\n<summary>Every measurement: drift / latency</summary>\n{_table(head, lines)}\n</details>"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of texts: a name in the first column, numbers in the others."""
    head = "".join(_cell(title, "th", "number" if at else "", ' scope="col"') for at, title in enumerate(titles))
    body = (_name(name) + "".join(_cell(value, "td", "number") for value in values) for name, *values in rows)
    return _table(head, body)


def _table(head: str, rows: Iterable[str]) -> str:
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _name(name: str) -> str:
    """The first cell of a row: a long name is broken into lines, behind its dots."""
    if len(name) <= _LONG_NAME:
        return _cell(name, "th", "", ' scope="row"')
    return f'<th class="words" scope="row">{_text(name).replace(".", ".<wbr>")}</th>'


def _cell(value: object, tag: str, kind: str, attributes: str = "") -> str:
    """A cell of a table; `kind` is its class: "number", "words" for long texts, or ""."""
    kind_of_cell = f' class="{kind}"' if kind else ""
    return f"<{tag}{kind_of_cell}{attributes}>{_text(value)}</{tag}>"
