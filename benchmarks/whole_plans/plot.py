"""Whole plans as a picture: predicted against measured latency, and the Pareto front of one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from jetvit.cost_model.measuring.runs import Mode, WholeRun
from jetvit.cost_model.predicting.estimate import Estimate

Rated = Sequence[tuple[WholeRun, Estimate]]
Losses = Callable[[Sequence[Sequence[str]], int], np.ndarray]


def plot(rated: Mapping[tuple[Mode, str], Rated], losses: Losses, device: str, path: Path) -> None:
    """Write the picture.

    Args:
        rated: by mode and group, each run with its estimate.
        losses: the loss of each plan by seed, for the front.
        device: what the latencies are of.
        path: of the PNG.
    """
    modes = list(dict.fromkeys(mode for mode, _ in rated))
    figure, axes = plt.subplots(2, len(modes), figsize=(6.5 * len(modes), 10.5), squeeze=False)
    for column, mode in enumerate(modes):
        groups = {model: some for (its, model), some in rated.items() if its == mode}
        _agreement(axes[0, column], mode, groups)
        model, some = max(groups.items(), key=lambda item: max(run.latency.median_ms for run, _ in item[1]))
        _front(axes[1, column], mode, model, some, losses)
    figure.suptitle(f"Whole plans on {device}, overheads fitted to the other models")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _agreement(axes: Axes, mode: Mode, groups: Mapping[str, Rated]) -> None:
    for model, some in groups.items():
        measured = [run.latency.median_ms for run, _ in some]
        axes.scatter(measured, [each.ms for _, each in some], s=14, alpha=0.8, linewidths=0, label=model)
    ends = axes.get_xlim()
    axes.plot(ends, ends, color="0.6", linewidth=0.8, zorder=0)
    axes.set(xscale="log", yscale="log", title=mode, xlabel="measured, ms", ylabel="predicted, ms")
    axes.legend(fontsize=7)


def _front(axes: Axes, mode: Mode, model: str, some: Rated, losses: Losses) -> None:
    loss = losses([run.plan.split() for run, _ in some], 0)
    times = {
        "measured": np.array([run.latency.median_ms for run, _ in some]),
        "predicted": np.array([each.ms for _, each in some]),
    }
    for (name, ms), marker, colour in zip(times.items(), "o+", ("tab:blue", "tab:orange"), strict=True):
        axes.scatter(ms, loss, s=24, marker=marker, color=colour, alpha=0.6, label=f"a plan, {name}")
        order = undominated(ms, loss)
        axes.step(ms[order], loss[order], where="post", color=colour, linewidth=1.2, label=f"Pareto front, {name}")
    axes.set(title=f"{mode}: {model}", xlabel="latency, ms", ylabel="loss (made up: the weights are random)")
    axes.title.set_fontsize(8)
    axes.legend(fontsize=8)


def undominated(ms: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The numbers of the points that none beats in both, the fastest first."""
    order = np.lexsort((loss, ms))
    return order[loss[order] < np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))]
