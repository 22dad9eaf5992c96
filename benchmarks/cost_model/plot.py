"""The predictions of the cost model as a picture: held-out rows against what was measured, and what is left over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from jetvit.cost_model.measuring.operation import OPS

_TITLES = {
    "in range": "rows at random",
    "family": "a family of shapes left out",
    "model": "a model left out",
    "2x": "beyond half of the tokens",
}


def plot(held: Sequence[tuple[Any, ...]], device: str, path: Path) -> None:
    """Write the picture.

    Args:
        held: held-out rows, as `benchmarks.cost_model.held_out` gives them.
        device: what the latencies are of.
        path: of the PNG.
    """
    experiments = [name for name in _TITLES if any(row[0] == name for row in held)]
    colours = dict(zip(OPS, plt.get_cmap("tab10").colors, strict=False))
    figure, axes = plt.subplots(2, len(experiments), figsize=(4 * len(experiments), 7.5), squeeze=False)
    for column, experiment in enumerate(experiments):
        rows = [row for row in held if row[0] == experiment]
        above, below = axes[0, column], axes[1, column]
        for op in OPS:
            mine = [row for row in rows if row[1].op == op]
            if not mine:
                continue
            true, predicted = (np.exp([row[place] for row in mine]) for place in (2, 3))
            style = {"s": 9, "color": colours[op], "alpha": 0.7, "linewidths": 0}
            above.scatter(true, predicted, label=op, **style)
            below.scatter(true, (predicted / true - 1) * 100, **style)
        ends = [min(above.get_xlim()[0], above.get_ylim()[0]), max(above.get_xlim()[1], above.get_ylim()[1])]
        ends[0] = max(ends[0], 0.8 * min(np.exp(row[2]) for row in rows))
        above.plot(ends, ends, color="0.6", linewidth=0.8, zorder=0)
        above.set(xscale="log", yscale="log", title=_TITLES[experiment], ylabel="predicted, ms")
        below.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        below.set(xscale="log", ylim=(-60, 60), xlabel="measured, ms", ylabel="predicted − measured, %")
    axes[0, 0].legend(fontsize=8, markerscale=2)
    figure.suptitle(f"Latency of single operations on {device}: held-out rows")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
