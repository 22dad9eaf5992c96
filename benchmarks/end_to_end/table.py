"""Compare the end-to-end rows of a device with the figures of the paper and the goals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.devices import goal_device
from benchmarks.end_to_end.models import PAPER_SIZE, pixels

Row = Mapping[str, str]
MISSING = "not measured yet"
HYBRIDS = ("hybrid 2 FA", "hybrid 2 FA max-autotune")


@dataclass(frozen=True)
class Paper:
    """Latency in ms and images a second of the paper (arXiv 2605.26636), on an H100 with PyTorch 2.8.

    full: eager, with FlashAttention. hybrids: by the number of blocks with full attention.
    """

    full: tuple[float, float]
    hybrids: Mapping[int, tuple[float, float]]


@dataclass(frozen=True)
class Goal:
    """A goal of this project: latency with two full blocks, and its ratio over the best compiled full attention."""

    ms: float
    ratio: float | None = None


PAPER = {
    "DINOv3-B": Paper((12.86, 81.52), {0: (7.37, 153.94), 1: (7.69, 145.45), 2: (8.27, 133.68)}),
    "DINOv3-L": Paper((35.07, 29.53), {2: (18.77, 57.90)}),
    "DepthAnythingV2-L": Paper((60.76, 14.20), {0: (29.70, 34.97), 1: (31.04, 33.72), 2: (32.63, 32.13)}),
    "DepthAnythingV2-G": Paper((164.25, 6.35), {2: (90.65, 11.39)}),
    "DINOv3-7B": Paper((316.79, 3.26), {2: (221.08, 4.80)}),
}
# By device (`goal_device`), in bf16, batch 1, at the paper's image size.
GOALS = {
    "H100": {
        "DINOv3-B": Goal(5.0),
        "DINOv3-L": Goal(14.0),
        "DepthAnythingV2-L": Goal(25.0),
        "DepthAnythingV2-G": Goal(80.0),
        "DINOv3-7B": Goal(215.0),
    },
    "H200": {
        "DINOv3-B": Goal(4.2),
        "DINOv3-L": Goal(11.0, 2.0),
        "DepthAnythingV2-L": Goal(19.0),
        "DepthAnythingV2-G": Goal(70.0),
        "DINOv3-7B": Goal(190.0),
    },
}


@dataclass(frozen=True)
class Compared:
    """The variants of a model at one size and batch, by name, those that ran and were right."""

    rows: Mapping[str, Row]

    def ms(self, variant: str) -> float | None:
        """Return the median latency."""
        return float(self.rows[variant]["median_ms"]) if variant in self.rows else None

    def best(self, variants: Iterable[str]) -> str | None:
        """Return the fastest of some variants, each against the anchor of its own minute."""
        there = [each for each in variants if each in self.rows]
        return max(there, key=self._over_anchor) if there else None

    @property
    def best_full(self) -> str | None:
        """Return the fastest compiled full attention."""
        return self.best(name for name in self.rows if name.startswith(("compiled", "max-autotune")))

    @property
    def best_hybrid(self) -> str | None:
        """Return the fastest hybrid with two full blocks and our kernels."""
        return self.best(HYBRIDS)

    def speedup(self, variant: str, over: str) -> float:
        """Return how many times as long `over` takes, each against the anchor of its own minute."""
        return self._over_anchor(variant) / self._over_anchor(over)

    def _over_anchor(self, variant: str) -> float:
        return float(self.rows[variant]["ratio"] or 1)  # of the anchor there is none


def compared(rows: Iterable[Row], model: str, size: str, batch: int) -> Compared:
    """Return the rows of a model at one size (as rows write it) and batch."""
    return Compared(
        {
            row["variant"]: row
            for row in rows
            if (row["model"], row["size"], row["batch"], row["status"]) == (model, size, str(batch), "ok")
        }
    )


def end_to_end_lines(rows: Sequence[Row]) -> list[str]:
    """Return the tables of one device, latency and throughput, under its name; one short line if there are no rows."""
    if not rows:
        return [MISSING]
    between = ["", "The same at the batch with the highest throughput:", ""]
    return [f"**{rows[-1]['device']}**", "", latency_table(rows), *between, throughput_table(rows)]


def latency_table(rows: Sequence[Row]) -> str:
    """Return latency at the paper's image size, batch 1, of the rows of one device: a line a model.

    The goals are those of the device; for a device without goals there is no such column.
    """
    if not rows:
        return MISSING
    dry = any(row["dry"] == "True" for row in rows)
    goals = GOALS.get(goal_device(rows[-1]["device"]) or "")
    titles = ["model, image", "paper, on an H100: full → 2 FA", "full, eager FlashAttention", "full, best compiled"]
    titles += ["2 FA, plain PyTorch", "2 FA, our kernels", "1 FA; 0 FA", "over best compiled full"]
    titles += ["goal"] if goals else []
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for model, paper in PAPER.items():
        height, width = pixels(model, PAPER_SIZE, dry)
        here = compared(rows, model, f"{height}x{width}", 1)
        full, ours = here.best_full, here.best_hybrid
        ratio = here.speedup(ours, full) if ours and full else None
        fewer = "; ".join(_ms(here.ms(f"hybrid {number} FA")) for number in (1, 0))
        cells = [
            f"{model}, {height}×{width}",
            f"{paper.full[0]:g} → {paper.hybrids[2][0]:g} ms",
            _ms(here.ms("eager flash")),
            f"{_ms(here.ms(full))} ({full})" if full else MISSING,
            _ms(here.ms("hybrid 2 FA plain")),
            f"**{_ms(here.ms(ours))}**" if ours else MISSING,
            MISSING if fewer == f"{MISSING}; {MISSING}" else fewer,
            f"**{ratio:.2f}×**" if ratio else MISSING,
        ]
        if goals:
            cells.append(_goal(goals[model], here.ms(ours) if ours and not dry else None, ratio))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def throughput_table(rows: Sequence[Row]) -> str:
    """Return images a second at the best of the batches that were tried, at the paper's image size, of one device."""
    if not rows:
        return MISSING
    lines = [
        "| model, image | paper, on an H100: full → 2 FA | full, compiled | 2 FA, our kernels | ratio |",
        "|---|---|---|---|---|",
    ]
    dry = any(row["dry"] == "True" for row in rows)
    for model, paper in PAPER.items():
        height, width = pixels(model, PAPER_SIZE, dry)
        batches = sorted({int(row["batch"]) for row in rows if row["model"] == model})
        groups = [compared(rows, model, f"{height}x{width}", batch).rows for batch in batches]
        full, ours = (_most(groups, name) for name in ("compiled", "hybrid 2 FA"))
        ratio = float(ours["images_per_s"]) / float(full["images_per_s"]) if full and ours else None
        lines.append(
            f"| {model}, {height}×{width} | {paper.full[1]:g} → {paper.hybrids[2][1]:g} img/s | {_rate(full)} | "
            f"{_rate(ours)} | {f'**{ratio:.2f}×**' if ratio else MISSING} |"
        )
    return "\n".join(lines)


def _most(groups: Iterable[Mapping[str, Row]], variant: str) -> Row | None:
    there = [group[variant] for group in groups if variant in group]
    return max(there, key=lambda row: float(row["images_per_s"])) if there else None


def _rate(row: Row | None) -> str:
    return f"{float(row['images_per_s']):.4g} img/s (batch {row['batch']})" if row else MISSING


def _ms(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g} ms"


def _goal(goal: Goal, ms: float | None, ratio: float | None) -> str:
    words = f"≤ {goal.ms:g} ms" + (f", ≥ {goal.ratio:g}×" if goal.ratio else "")
    if ms is None:
        return words
    met = ms <= goal.ms and (goal.ratio is None or (ratio or 0) >= goal.ratio)
    return f"{words}: {'met' if met else 'missed'}"
