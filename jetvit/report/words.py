"""The words of a report: numbers, latencies, names and choices as text, the same in the terminal and on a page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from jetvit.report.rows import MeasuredChoice, SiteRow

KINDS = ("full", "window", "linear")
EXTRAPOLATED = "*"


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
    """Three significant digits without a power of ten, "<0.000001" below that; "–" for None."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 999.5:
        return f"{value:,.0f}"
    if size >= 1e-4 or size == 0:
        return f"{value:.3g}"
    return f"{value:.8f}".rstrip("0") if size >= 1e-6 else "<0.000001"


def interval(low: float, high: float) -> str:
    """ "[11.0–13.8]", to three digits."""
    ends = (f"{end:#.3g}".rstrip(".") if end < 999.5 else number(end) for end in (low, high))
    return f"[{'–'.join(ends)}]"


def latency_text(one: MeasuredChoice | None) -> str:
    """ "12.3" where it was measured, "12.3 [11.0–13.8]" where it was predicted, with "*" beyond the table's sizes."""
    if one is None or one.latency_ms is None:
        return "–"
    text = number(one.latency_ms)
    if one.source == "predicted" and one.low_ms is not None and one.high_ms is not None:
        text += f" {interval(one.low_ms, one.high_ms)}"
    return text + (EXTRAPOLATED if one.extrapolated else "")


def extra_text(row: SiteRow) -> str:
    """Extra tokens as "5 before", "2 before, 3 after" the grid, or "none"."""
    counts = ((row.extra_before, "before"), (row.extra_after, "after"))
    return ", ".join(f"{count} {where}" for count, where in counts if count != 0) or "none"


def decision_text(row: SiteRow) -> str:
    """The decision; of a rewritten site, that it is done."""
    return f"{row.decision} (done)" if row.status == "rewritten" else row.decision or ""


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Labels of choices, each once: "full", then windows by size, then linear attention."""

    def order(label: str) -> tuple[int, list[int], str]:
        return KINDS.index(label.split()[0]), [int(digits) for digits in re.findall(r"\d+", label)], label

    return sorted(set(labels), key=order)


def alike(rows: Sequence[SiteRow]) -> list[list[SiteRow]]:
    """Sites of which a latency is known, those together of which every choice takes the same."""
    groups: dict[tuple[tuple[str, str], ...], list[SiteRow]] = {}
    for row in rows:
        if any(one.latency_ms is not None for one in row.measured.values()):
            texts = tuple((label, latency_text(row.measured[label])) for label in sorted_labels(row.measured))
            groups.setdefault(texts, []).append(row)
    return list(groups.values())
