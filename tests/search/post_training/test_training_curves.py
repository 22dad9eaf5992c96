"""The losses of the stages, drawn and smoothed."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from jetvit.search.post_training.trace import read_losses
from jetvit.search.post_training.training_curves import draw_curves, smoothed, training_figure
from tests.search.traces import trace_record, write_search


def test_training(tmp_path: Path) -> None:
    stages = ("head", "local_distillation", "task", "control")
    losses = read_losses(write_search(tmp_path, trace_record(2, 1, 1), stages))
    figure = training_figure(losses)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["head", "local distillation", "task", "control"]
    assert {axes.get_yscale() for axes in shown} == {"log"}
    assert training_figure({"task": [0.5, -0.5]}).axes[0].get_yscale() == "linear"


def test_smoothing_keeps_the_length_and_a_constant() -> None:
    for length in (1, 19, 20, 1000):
        assert smoothed([3.0] * length) == pytest.approx([3.0] * length)
    assert smoothed(range(100))[50] == pytest.approx(50, abs=1)


def test_curves(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw_curves({"with inheritance": [1.0, 0.5, 0.2], "without inheritance": [2.0, 1.5]}, path, "inheritance")
    assert imread(path).shape[1] == 1000
