"""What the end-to-end rows say, beside the figures of the paper and the goals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.end_to_end_models import PAPER_SIZE, pixels

Row = Mapping[str, str]
MISSING = "not measured yet"
HYBRIDS = ("hybrid 2 FA", "hybrid 2 FA max-autotune")


@dataclass(frozen=True)
class Paper:
    """Latency in ms and images a second of the paper (arXiv 2605.26636), on an H100 with PyTorch 2.8.

    full: eager, with FlashAttention. hybrids: by the number of blocks with full attention. goal_ms, goal_ratio: what
    this project has set itself; the ratio is over the best compiled full attention.
    """

    full: tuple[float, float]
    hybrids: Mapping[int, tuple[float, float]]
    goal_ms: float
    goal_ratio: float | None


PAPER = {
    "DINOv3-B": Paper((12.86, 81.52), {0: (7.37, 153.94), 1: (7.69, 145.45), 2: (8.27, 133.68)}, 5.0, 1.7),
    "DINOv3-L": Paper((35.07, 29.53), {2: (18.77, 57.90)}, 14.0, 1.7),
    "DepthAnythingV2-L": Paper((60.76, 14.20), {0: (29.70, 34.97), 1: (31.04, 33.72), 2: (32.63, 32.13)}, 25.0, 1.65),
    "DepthAnythingV2-G": Paper((164.25, 6.35), {2: (90.65, 11.39)}, 80.0, 1.5),
    "DINOv3-7B": Paper((316.79, 3.26), {2: (221.08, 4.80)}, 215.0, None),
}


@dataclass(frozen=True)
class Compared:
    """The variants of a model at one size and batch, by name, those that ran and were right."""

    rows: Mapping[str, Row]

    def ms(self, variant: str) -> float | None:
        """The median latency."""
        return float(self.rows[variant]["median_ms"]) if variant in self.rows else None

    def best(self, variants: Iterable[str]) -> str | None:
        """The fastest of some variants, each against the anchor of its own minute."""
        there = [each for each in variants if each in self.rows]
        return max(there, key=self._over_anchor) if there else None

    @property
    def best_full(self) -> str | None:
        """The fastest compiled full attention."""
        return self.best(name for name in self.rows if name.startswith(("compiled", "max-autotune")))

    @property
    def best_hybrid(self) -> str | None:
        """The fastest hybrid with two full blocks and our kernels."""
        return self.best(HYBRIDS)

    def speedup(self, variant: str, over: str) -> float:
        """How many times as long `over` takes; both against the anchor, for the device may slow down between them."""
        return self._over_anchor(variant) / self._over_anchor(over)

    def _over_anchor(self, variant: str) -> float:
        return float(self.rows[variant]["ratio"] or 1)  # of the anchor there is none


def compared(rows: Iterable[Row], model: str, size: str, batch: int) -> Compared:
    """The rows of a model at one size (as rows write it) and batch."""
    return Compared(
        {
            row["variant"]: row
            for row in rows
            if (row["model"], row["size"], row["batch"], row["status"]) == (model, size, str(batch), "ok")
        }
    )


def latency_table(rows: Sequence[Row]) -> str:
    """Latency at the paper's image size, batch 1: a line a model, measured or not."""
    lines = [
        "| model, image | paper: full → 2 FA | full, eager FlashAttention | full, best compiled | "
        "2 FA, plain PyTorch | 2 FA, our kernels | 1 FA; 0 FA | over best compiled full | goal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    dry = any(row["dry"] == "True" for row in rows)
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
            _goal(paper, here.ms(ours) if ours and not dry else None, ratio),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def throughput_table(rows: Sequence[Row]) -> str:
    """Images a second at the best of the batches that were tried, at the paper's image size."""
    lines = [
        "| model, image | paper: full → 2 FA | full, compiled | 2 FA, our kernels | ratio |",
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


def _goal(paper: Paper, ms: float | None, ratio: float | None) -> str:
    words = f"≤ {paper.goal_ms:g} ms" + (f", ≥ {paper.goal_ratio:g}×" if paper.goal_ratio else "")
    if ms is None:
        return words
    met = ms <= paper.goal_ms and (paper.goal_ratio is None or (ratio or 0) >= paper.goal_ratio)
    return f"{words}: {'met' if met else 'missed'}"
