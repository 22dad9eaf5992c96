"""The README's table of what drift costs: the change of each task's metric, by bands of drift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median

ORDERED, RANDOM, LINEAR = "windows, calibrated order", "windows, random blocks", "linear blocks"
BOUNDS = (0.0, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0)
BANDS = tuple(pairwise(BOUNDS))
METRICS = {"miou": "mIoU", "delta1": "δ1"}
DATA = {"camvid": "CamVid", "nyuv2": "NYUv2"}


def in_band(drift: float, band: tuple[float, float]) -> bool:
    """Return whether a drift lies above the band's lower bound and not above its upper bound."""
    low, high = band
    return low < drift <= high


def drift_cost_lines(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the table of one device: a line for each band of drift, and for each task three columns.

    Plans with linear attention are left out, because `calibrate` does not try it by default.
    """
    rows = [row for row in rows if row["kind"] != LINEAR]
    tasks = {row["data"]: row for row in rows}
    header = ["`max_drift`", "drift of the plans"]
    for name, row in tasks.items():
        metric = METRICS[row["metric"]]
        header += [
            f"{DATA[name]}: plans",
            f"{metric} (original: {float(row['original']):.3f}), change in points: median",
            "worst",
        ]
    lines = [_line(header), "|" + "---|" * len(header)]
    for low, high in BANDS:
        cells = [f"{high:g}", f"{low:g} to {high:g}"]
        for name in tasks:
            cells += _changes(
                [row for row in rows if row["data"] == name and in_band(float(row["drift"]), (low, high))]
            )
        lines.append(_line(cells))
    return lines


def drift_cost_sentence(rows: Sequence[Mapping[str, str]]) -> str:
    """Say which images were read, and what the plan with linear attention that loses most costs."""
    read = {
        row["data"]: f"{DATA[row['data']]}, {row['images']} images of {row['size'].replace('x', '×')}" for row in rows
    }
    text = f"Read: {'; '.join(read.values())}."
    linear = [row for row in rows if row["kind"] == LINEAR]
    if linear:
        worst = min(linear, key=lambda row: float(row["difference"]))
        lost = f"{-100 * float(worst['difference']):.1f} points of {METRICS[worst['metric']]}"
        text += f" Of the plans with linear attention one of drift {float(worst['drift']):.2f} loses most: {lost}."
    return text


def _changes(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield the number of plans, the median change and the lowest one."""
    points = [100 * float(row["difference"]) for row in rows]
    yield str(len(points))
    yield from (f"**{median(points):+.1f}**", f"{min(points):+.1f}") if points else ("", "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
