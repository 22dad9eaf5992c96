"""The metric against full sites and against latency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jetvit.search.post_training.trace import read_trace
from jetvit.search.post_training.trade_offs import full_blocks_figure, trade_off_figure
from tests.search.traces import LINEAR, texts, trace_record, write_search


@pytest.mark.parametrize("fulls", [0, 3])
def test_full_blocks(tmp_path: Path, fulls: int) -> None:
    figure = full_blocks_figure(read_trace(write_search(tmp_path, trace_record(6, 2, fulls))))
    quality, latency = figure.axes
    best = {line.get_label(): line for line in quality.lines}["best by the metric with so many"]
    assert list(best.get_xdata()) == list(range(fulls + 1))
    assert best.get_ydata() == pytest.approx([0.52 + 0.05 * full for full in range(fulls + 1)])
    assert list(quality.get_xticks()) == list(range(fulls + 1))
    assert {f"control: all {LINEAR}", "control: random", "original model, full everywhere"} <= texts(figure)
    assert latency.get_ylabel() == "model's latency (ms)"


def test_trade_off(tmp_path: Path) -> None:
    figure = trade_off_figure(read_trace(write_search(tmp_path, trace_record(12, 4, 2))))
    assert {"beam search", "listed by the integer program", "original model", "chosen path"} <= texts(figure)
    front = {line.get_label(): line for line in figure.axes[0].lines}["Pareto front"]
    across, up = np.asarray(front.get_xdata()), np.asarray(front.get_ydata())
    assert (np.diff(across) > 0).all()
    assert (np.diff(up) > 0).all()
    assert (across[-1], up[-1]) == pytest.approx((10, 1.1))  # the original: the slowest, and the best
