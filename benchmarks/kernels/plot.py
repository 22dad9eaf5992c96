"""The kernel benchmark as a picture: latency by mixer, model and implementation, with the floor of each.

python -m benchmarks.kernels.plot FILE.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.kernels.rows import OURS, REFERENCE, newest, read_rows
from benchmarks.kernels.shapes import FIRST_MIXERS, MODELS, MORE_MIXERS

Row = Mapping[str, str]

# Ours stands out; an implementation has one colour in all panels, its eager and compiled forms are kin.
_STYLES: dict[str, tuple[str, str]] = {
    OURS: ("#d62728", "D"),
    "flex": ("#9467bd", "s"),
    "flex reordered": ("#c5b0d5", "s"),
    "compiled": ("#1f77b4", "o"),
    "compiled balanced": ("#1f77b4", "o"),
    "compiled padded": ("#17becf", "o"),
    "eager": ("#aec7e8", "o"),
    "eager balanced": ("#aec7e8", "o"),
    "eager padded": ("#9edae5", "o"),
    "sdpa cudnn": ("#2ca02c", "^"),
    "sdpa flash": ("#98df8a", "^"),
    "sdpa efficient": ("#bcbd22", "^"),
    "sdpa math": ("#7f7f7f", "^"),
    REFERENCE: ("#c7c7c7", "v"),
}
_MIXERS = [mixer.name for mixer in (*FIRST_MIXERS, *MORE_MIXERS)]


def plot(rows: Iterable[Row], folder: Path) -> list[Path]:
    """One picture an image size, kernels-HEIGHTxWIDTH.png in `folder`; those of a dry run say so in their names."""
    timed = [row for row in newest(rows) if row["status"] == "ok"]
    paths = []
    for size in dict.fromkeys(row["size"] for row in timed):
        here = [row for row in timed if row["size"] == size]
        dry = here[0]["dry"] == "True"
        paths.append(folder / f"kernels-{'dry-' if dry else ''}{size}.png")
        _picture(here, size, dry, paths[-1])
        print(f"wrote {paths[-1]}")
    return paths


def _picture(rows: list[Row], size: str, dry: bool, path: Path) -> None:
    mixers = [mixer for mixer in _MIXERS if any(row["mixer"] == mixer for row in rows)]
    columns = min(3, len(mixers))
    lines = -(-len(mixers) // columns)
    models = [model for model in MODELS if any(row["model"] == model for row in rows)]
    figure, panels = plt.subplots(
        lines, columns, figsize=(5.6 * columns, (1.2 + 1.45 * len(models)) * lines + 1.2), squeeze=False
    )
    for panel, mixer in zip(panels.flat, mixers, strict=False):
        _panel(panel, [row for row in rows if row["mixer"] == mixer], mixer, models)
    for panel in panels.flat[len(mixers) :]:
        panel.axis("off")
    first = rows[0]
    heading = f"Mixers at {size.replace('x', '×')}, batch 1, bf16 — {first['device']}"
    note = f"torch {first['torch']}, triton {first['triton']}. Markers: median and quartiles. Black line: the floor. "
    note += "“sdpa …” leaves out the rotation. "
    note += f"Copy {float(first['copy_tb_s']):.2f} TB/s, product {float(first['gemm_tflop_s']):.0f} TFLOP/s."
    if dry:
        heading, note = f"DRY RUN ON A CPU, SMALL SHAPES: {heading}", "Shows that the program works, and nothing else."
    figure.suptitle(heading, fontsize=14, x=0.01, ha="left", weight="bold")
    figure.text(0.01, 0.008, note, fontsize=9, color="#555555")
    figure.tight_layout(rect=(0, 0.02, 1, 0.985))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(panel: Any, rows: list[Row], mixer: str, models: Sequence[str]) -> None:
    names = [name for name in _STYLES if any(row["implementation"] == name for row in rows)]
    spread = 0.78
    for place, model in enumerate(models):
        here = {row["implementation"]: row for row in rows if row["model"] == model}
        if not here:
            continue
        panel.axhspan(place - 0.46, place + 0.46, color="#f5f5f5", zorder=0)
        floor = float(next(iter(here.values()))["floor_ms"])
        panel.plot([floor] * 2, [place - 0.46, place + 0.46], color="black", linewidth=1.8, zorder=2, label="floor")
        for index, name in enumerate(names):
            if name not in here:
                continue
            y = place - spread / 2 + spread * (index + 0.5) / len(names)
            low, middle, high = (float(here[name][column]) for column in ("q25_ms", "median_ms", "q75_ms"))
            colour, marker = _STYLES[name]
            panel.errorbar(
                middle,
                y,
                xerr=[[middle - low], [high - middle]],
                fmt=marker,
                color=colour,
                markersize=8 if name == OURS else 6,
                linewidth=1.5,
                zorder=3,
                label=name,
            )
            text = f"{_digits(middle)} · {middle / floor:.1f}×" if name == OURS else _digits(middle)
            panel.annotate(
                text,
                (high, y),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=colour if name == OURS else "#666666",
                weight="bold" if name == OURS else "normal",
            )
    panel.set_xscale("log")
    left, right = panel.get_xlim()
    panel.set_xlim(left, right * (right / left) ** 0.22)  # room for the numbers
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right / left < 300 else (1,)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("ms a block")
    panel.set_yticks(range(len(models)), models)
    panel.set_ylim(len(models) - 0.5, -0.5)
    panel.set_title(mixer, loc="left", fontsize=12)
    panel.grid(axis="x", color="#dddddd", linewidth=0.8)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    handles = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    panel.legend(
        handles.values(),
        handles.keys(),
        loc="upper right",
        bbox_to_anchor=(1.0, -0.6 / len(models)),
        ncols=3,
        fontsize=8,
        frameon=False,
        columnspacing=1.2,
    )


def _digits(ms: float) -> str:
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def main() -> None:
    """Plot a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="kernels.csv of the benchmark")
    args = parser.parse_args()
    plot(read_rows(args.table), args.table.parent)


if __name__ == "__main__":
    main()
