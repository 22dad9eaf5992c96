"""What drift costs as a picture: the change of each task's metric over the drift of many plans.

python -m benchmarks.drift_cost.plot FILE.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.drift_cost.table import BOUNDS, DATA, LINEAR, METRICS, ORDERED, RANDOM
from benchmarks.kernels.rows import read_rows

# Of Okabe and Ito: they differ for the colour-blind.
_STYLES = {ORDERED: ("#0072B2", "o"), RANDOM: ("#E69F00", "s"), LINEAR: ("#CC79A7", "D")}
_DEFAULT_MAX_DRIFT = 0.35
# The standard deviation of the local mean's weights, as a difference of square roots of drift.
_BANDWIDTH = 0.07


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture: one panel for each task, one colour for each kind of plan."""
    tasks = list(dict.fromkeys(row["data"] for row in rows))
    figure, panels = plt.subplots(1, len(tasks), figsize=(6.2 * len(tasks), 4.9), squeeze=False, sharey=True)
    for panel, name in zip(panels.flat, tasks, strict=True):
        _panel(panel, [row for row in rows if row["data"] == name])
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False, fontsize=10)
    figure.suptitle(
        "What drift costs: each point is a plan, without training", fontsize=14, x=0.01, ha="left", weight="bold"
    )
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"wrote {path}")


def _panel(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for kind, (colour, marker) in _STYLES.items():
        some = [row for row in rows if row["kind"] == kind]
        drift, change, low, high = (_numbers(some, name) for name in ("drift", "difference", "low", "high"))
        panel.vlines(drift, 100 * low, 100 * high, color=colour, alpha=0.35, linewidth=1.2, zorder=2)
        panel.scatter(drift, 100 * change, s=26, color=colour, marker=marker, linewidths=0, zorder=3, label=kind)
    windows = [row for row in rows if row["kind"] != LINEAR]
    drift, mean = local_mean(_numbers(windows, "drift"), 100 * _numbers(windows, "difference"))
    panel.plot(drift, mean, color="0.25", linewidth=2.5, zorder=2, label="windows, local mean")
    panel.plot([], [], color="0.5", linewidth=1.2, label="95 % interval over images")
    panel.axhline(0, color="0.4", linewidth=1, zorder=1)
    default = f"default max_drift, {_DEFAULT_MAX_DRIFT:g}"
    panel.axvline(_DEFAULT_MAX_DRIFT, color="0.4", linestyle="--", linewidth=1, zorder=1, label=default)
    panel.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ticks = (*BOUNDS[:-1], 1.5, BOUNDS[-1])
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_xlim(0, 1.04 * max(float(row["drift"]) for row in rows))
    panel.grid(color="#e5e5e5", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    first = rows[0]
    metric = METRICS[first["metric"]]
    title = f"{DATA[first['data']]}: {metric}, {100 * float(first['original']):.1f} points for the original model"
    panel.set_title(title, loc="left", fontsize=11)
    panel.set_xlabel("drift on validation images (square-root scale)")
    panel.set_ylabel(f"change of {metric}, points")
    panel.tick_params(labelleft=True)


def local_mean(drift: np.ndarray, change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return drifts in ascending order, and the mean change around each with Gaussian weights.

    Distances are differences of square roots, as the axis of the picture shows drift.
    """
    roots = np.sqrt(drift)
    grid = np.linspace(roots.min(), roots.max(), 200)
    weights = np.exp(-0.5 * np.square((grid[:, None] - roots) / _BANDWIDTH))
    return np.square(grid), weights @ change / weights.sum(1)


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def main() -> None:
    """Plot a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="drift_cost.csv of the benchmark")
    args = parser.parse_args()
    plot(read_rows(args.table), args.table.with_suffix(".png"))


if __name__ == "__main__":
    main()
