"""The breakdown of one model as text and as a picture: a bar for each kind of kernel, its computed floor as a mark.

python -m benchmarks.breakdown.plot FILE.json
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.breakdown.kinds import (
    CONVOLUTION,
    COPY,
    FULL,
    GAPS,
    LINEAR,
    MEMSET,
    NORM,
    OTHER,
    POINTWISE,
    PRODUCT,
    WINDOW,
)
from jetvit.cost_model.files.whole_file import write_whole

# Mixers in warm colours, products in blue, what only moves data in grey: the same in all pictures.
_COLOURS = {
    PRODUCT: "#1f77b4",
    CONVOLUTION: "#17becf",
    FULL: "#d62728",
    LINEAR: "#ff7f0e",
    WINDOW: "#e377c2",
    NORM: "#2ca02c",
    POINTWISE: "#98df8a",
    COPY: "#7f7f7f",
    MEMSET: "#7f7f7f",
    OTHER: "#9467bd",
    GAPS: "#d9d9d9",
}


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Write the picture of a record as a PNG, whole or not at all. Raises OSError."""
    rows = [row for row in record["kinds"] if row["ms"] > 0 or row["floor (computed), ms"]]
    figure, panel = plt.subplots(figsize=(11, 1.9 + 0.46 * len(rows)), layout="constrained")
    longest = max(max(row["ms"], row["floor (computed), ms"] or 0) for row in rows)
    for place, row in enumerate(rows):
        least = row["floor (computed), ms"]
        panel.barh(place, row["ms"], height=0.62, color=_COLOURS[row["kind"]], zorder=2)
        text = f"{row['ms']:.3g} ms · {row['share']:.1%}"
        if row["launches"]:
            text += f" · {row['launches']} launch{'' if row['launches'] == 1 else 'es'}"
        if least:
            panel.plot([least] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2.2, zorder=3)
            text += f" · floor (computed) {least:.3g} ms"
        panel.annotate(
            text,
            (max(row["ms"], least or 0), place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color="#444444",
        )
    panel.set_xlim(0, longest * 1.75)  # room for the numbers
    panel.set_xticks([tick for tick in panel.get_xticks() if tick <= longest])
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_yticks(range(len(rows)), [row["kind"] for row in rows])
    panel.set_xlabel("ms a call", loc="left")
    panel.spines["bottom"].set_bounds(0, longest)
    panel.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    known = record["environment"]
    dry = str(known["dry"]) == "True"
    panel.set_title(
        f"{'DRY RUN: ' if dry else ''}{record['model']}, {record['variant']}, "
        f"{record['size'].replace('x', '×')}, batch {record['batch']}: {record['wall_ms']:.2f} ms",
        loc="left",
        fontsize=12,
        weight="bold",
        x=0,
        pad=36,
    )
    note = f"{known['device']}, {record['dtype']}, torch {known['torch']}, {record['weights']} weights\n"
    note += f"{record['launches']} launches by {record['launched']}, {record['event_ms']:.2f} ms without the profiler."
    if any(row["floor (computed), ms"] for row in rows):
        note += " Black: floor (computed)."
    if dry:
        note = "A tiny model on a CPU, operators in place of kernels: shows that the program works, and nothing else."
    panel.text(0, 1.0, note, transform=panel.transAxes, fontsize=9, color="#555555", va="bottom")
    content = io.BytesIO()
    figure.savefig(content, dpi=130, format="png")
    plt.close(figure)
    write_whole(path, content.getvalue())


def table(record: Mapping[str, Any]) -> str:
    """A record as text: its kinds, and its ten longest kernels."""
    lines = [
        f"{record['model']}, {record['variant']}, {record['size']}, {record['environment']['device']}, "
        f"launched by {record['launched']}",
        f"wall {record['wall_ms']:.2f} ms, by events {record['event_ms']:.2f} ms, "
        f"kernels {record['kernels_ms']:.2f} ms, gaps {record['gaps_ms']:.2f} ms, {record['launches']} launches",
        f"\n{'kind':<18} {'ms':>9} {'share':>7} {'launches':>9}   floor (computed), ms",
    ]
    for row in record["kinds"]:
        least = row["floor (computed), ms"]
        text = "" if least is None else f"{least:.3f}"
        lines.append(f"{row['kind']:<18} {row['ms']:9.3f} {row['share']:7.1%} {row['launches']:9}   {text:>20}")
    lines.append(f"\n{'ms':>9} {'share':>7} {'launches':>9}  kernel")
    for row in record["kernels"][:10]:
        lines.append(f"{row['ms']:9.3f} {row['share']:7.1%} {row['launches']:9}  {row['name'][:90]} [{row['kind']}]")
    if record["unknown"]:
        lines.append("\nno rule knows: " + ", ".join(name[:60] for name in record["unknown"][:10]))
    return "\n".join(lines)


def main() -> None:
    """Draw a record again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="breakdown-….json of the breakdown")
    path = parser.parse_args().record
    plot(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".png"))
    print(f"wrote {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
