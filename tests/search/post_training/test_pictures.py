"""Pictures of a search: which are written, what is on them, and which folders are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from jetvit.cost_model import Choice
from jetvit.patterns.errors import InputError
from jetvit.search.post_training import pictures
from jetvit.search.post_training.beam import Level, Rated
from jetvit.search.post_training.path_search import Searched
from jetvit.search.post_training.pictures import (
    draw,
    draw_curves,
    full_blocks_figure,
    read_losses,
    read_trace,
    sites_figure,
    trade_off_figure,
    training_figure,
)
from tests.zoo.quick import sweep

FULL, WINDOW_16, CONV_3 = Choice("full"), Choice("window", window=(16, 16)), Choice("linear", conv_size=3)
LINEAR, WINDOW = CONV_3.label, WINDOW_16.label
NAMES = ("sites", "full_blocks", "training", "trade_off")


def rated(sites: list[str], window: int, full: int) -> Rated:
    """A path whose first sites are full, and the next ones window attention."""
    choices = [FULL] * full + [WINDOW_16] * window + [CONV_3] * len(sites)
    path = dict(zip(sites, choices, strict=False))
    return Rated(path, 0.5 + 0.01 * window + 0.05 * full, 4 + 0.1 * window + 0.5 * full)


def record(count: int, windows: int, fulls: int) -> dict[str, Any]:
    """A trace with so many steps of either climb, as a search keeps it."""
    sites = [f"blocks.{number}.attn" for number in range(count)]
    climbs = {
        "efficient": [rated(sites, step, 0) for step in range(windows + 1)],
        "full": [rated(sites, windows, step) for step in range(fulls + 1)],
    }
    worst = rated(sites, 0, 0)
    searched = Searched(
        best=climbs["full"][-1],
        levels=tuple(
            Level(phase, step, (path, worst)) for phase, climb in climbs.items() for step, path in enumerate(climb)
        ),
        listed=(rated(sites, 1, fulls),),
        controls={f"all {LINEAR}": worst, "random": rated(sites, 0, fulls)},
        full=rated(sites, 0, count),
    )
    return {"task": "segmentation", "metric": "miou", "sites": sites, **searched.to_json()}


def write(folder: Path, trace: dict[str, Any], stages: tuple[str, ...] = ("head", "local_distillation")) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "trace.json").write_text(json.dumps(trace))
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = [(stage, step, 1 / (step + 1), 1.0, 0.1) for stage in stages for step in range(30)]
        csv.writer(file).writerows([("stage", "step", "loss", "rate", "seconds"), *rows])
    return folder


def texts(figure: Figure) -> set[str]:
    """Everything that is written on a figure, its legends included."""
    return {text.get_text() for text in figure.findobj(Text)}


@pytest.mark.parametrize(
    ("count", "windows", "fulls"),
    sweep([(1, 1, 1), (12, 4, 2), (40, 40, 40), (4, 0, 0)], quick=[(1, 1, 1), (12, 4, 2), (4, 0, 0)]),
)
@pytest.mark.filterwarnings("error")
def test_pictures_are_written(tmp_path: Path, count: int, windows: int, fulls: int) -> None:
    folder = write(tmp_path / "search", record(count, windows, fulls))
    written = draw(folder, tmp_path / "out" / "pictures")
    assert written == [tmp_path / "out" / "pictures" / f"{name}.png" for name in NAMES]
    for path in written:
        height, width, _ = imread(path).shape
        assert width == 1000
        assert 300 < height < 1300


def test_they_stand_in_the_folder_of_the_search(tmp_path: Path) -> None:
    assert [path.parent for path in draw(write(tmp_path, record(3, 1, 1)))] == [tmp_path] * 4


def test_map_of_sites(tmp_path: Path) -> None:
    figure = sites_figure(read_trace(write(tmp_path, record(12, 4, 2))))
    top, quality, latency = figure.axes
    assert [tick.get_text() for tick in top.get_yticklabels()] == [str(number) for number in range(12)]
    assert {LINEAR, WINDOW, "full", "original model", "chosen path", "A", "B", "★"} <= texts(figure)
    assert any("blocks.*.attn" in text for text in texts(figure))
    codes = np.asarray(top.collections[0].get_array()).reshape(12, -1)
    assert codes.shape[1] == 5 + 3 + 1
    assert codes[:, 0].tolist() == [0] * 12
    assert codes[:, 4].tolist() == [1] * 4 + [0] * 8
    assert codes[:, -1].tolist() == codes[:, -2].tolist() == [2] * 2 + [1] * 4 + [0] * 6
    assert (quality.get_ylabel(), latency.get_ylabel()) == ("mIoU\n(more is better)", "model's latency\n(ms)")
    drawn = [line.get_ydata() for line in quality.lines if line.get_marker() == "o"]
    assert drawn[0] == pytest.approx([0.5, 0.51, 0.52, 0.53, 0.54])
    assert drawn[1] == pytest.approx([0.54, 0.59, 0.64])


def test_map_of_a_search_without_steps(tmp_path: Path) -> None:
    """No start of a climb keeps the budget: there is the chosen path, from the list."""
    figure = sites_figure(read_trace(write(tmp_path, record(5, 1, 1) | {"beam": []})))
    assert np.asarray(figure.axes[0].collections[0].get_array()).size == 5
    assert "full" in texts(figure)


@pytest.mark.parametrize("fulls", [0, 3])
def test_full_blocks(tmp_path: Path, fulls: int) -> None:
    figure = full_blocks_figure(read_trace(write(tmp_path, record(6, 2, fulls))))
    quality, latency = figure.axes
    best = {line.get_label(): line for line in quality.lines}["best by the metric with so many"]
    assert list(best.get_xdata()) == list(range(fulls + 1))
    assert best.get_ydata() == pytest.approx([0.52 + 0.05 * full for full in range(fulls + 1)])
    assert list(quality.get_xticks()) == list(range(fulls + 1))
    assert {f"control: all {LINEAR}", "control: random", "original model, full everywhere"} <= texts(figure)
    assert latency.get_ylabel() == "model's latency (ms)"


def test_training(tmp_path: Path) -> None:
    stages = ("head", "local_distillation", "task", "control")
    losses = read_losses(write(tmp_path, record(2, 1, 1), stages))
    figure = training_figure(losses)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["head", "local distillation", "task", "control"]
    assert {axes.get_yscale() for axes in shown} == {"log"}
    assert training_figure({"task": [0.5, -0.5]}).axes[0].get_yscale() == "linear"


def test_smoothing_keeps_the_length_and_a_constant() -> None:
    for length in (1, 19, 20, 1000):
        assert pictures._smoothed([3.0] * length) == pytest.approx([3.0] * length)
    assert pictures._smoothed(range(100))[50] == pytest.approx(50, abs=1)


def test_trade_off(tmp_path: Path) -> None:
    figure = trade_off_figure(read_trace(write(tmp_path, record(12, 4, 2))))
    assert {"beam search", "listed by the integer program", "original model", "chosen path"} <= texts(figure)
    front = {line.get_label(): line for line in figure.axes[0].lines}["Pareto front"]
    across, up = np.asarray(front.get_xdata()), np.asarray(front.get_ydata())
    assert (np.diff(across) > 0).all()
    assert (np.diff(up) > 0).all()
    assert (across[-1], up[-1]) == pytest.approx((10, 1.1))  # the original: the slowest, and the best


def test_labels_of_a_kind_have_shades_of_their_own() -> None:
    colours = pictures._colours(["full", "window 16x16", "window 8x8", "linear hedgehog", LINEAR])
    assert list(colours) == ["linear hedgehog", LINEAR, "window 8x8", "window 16x16", "full"]
    grey = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in colours.values()]
    assert len({round(float(each), 2) for each in grey}) == 5


def test_short_names() -> None:
    assert pictures._short_names(["blocks.0.attn"]) == ("", ["blocks.0.attn"])
    assert pictures._short_names(["a.0.b.1.c", "a.2.b.0.c"]) == ("a.*.c", ["0.b.1", "2.b.0"])
    assert pictures._short_names(["attn", "attn.attn"]) == ("", ["attn", "attn.attn"])


def test_curves(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    draw_curves({"with inheritance": [1.0, 0.5, 0.2], "without inheritance": [2.0, 1.5]}, path, "inheritance")
    assert imread(path).shape[1] == 1000


def test_unfinished_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not finished"):
        draw(tmp_path)


@pytest.mark.parametrize("text", ["", '{"task": "segm', "[]", "{}", '{"sites": 3}', "\udcff"])
def test_damaged_trace_is_refused(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path, record(2, 1, 1))
    (folder / "trace.json").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=r"the trace of the search is damaged[\s\S]*trace\.json"):
        draw(folder)


def test_trace_with_a_site_that_a_path_lacks_is_refused(tmp_path: Path) -> None:
    trace = record(3, 1, 1)
    trace["sites"].append("another")
    with pytest.raises(InputError, match="another"):
        draw(write(tmp_path, trace))


def test_damaged_losses_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, record(2, 1, 1))
    for text in ("stage,loss\nhead,?\n", "other\n1\n"):
        (folder / "metrics.csv").write_text(text)
        with pytest.raises(InputError, match="cannot be read"):
            draw(folder)
    (folder / "metrics.csv").write_text("stage,step,loss,rate,seconds\n")
    with pytest.raises(InputError, match="no losses"):
        draw(folder)
    (folder / "metrics.csv").unlink()
    with pytest.raises(InputError, match=r"metrics\.csv"):
        draw(folder)
    assert not list(folder.glob("*.png"))
