"""The map of sites: its cells, names and colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from jetvit.search.post_training.site_map import label_colours, short_names, sites_figure
from jetvit.search.post_training.trace import read_trace
from tests.search.traces import LINEAR, WINDOW, texts, trace_record, write_search


def test_map_of_sites(tmp_path: Path) -> None:
    figure = sites_figure(read_trace(write_search(tmp_path, trace_record(12, 4, 2))))
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
    figure = sites_figure(read_trace(write_search(tmp_path, trace_record(5, 1, 1) | {"beam": []})))
    assert np.asarray(figure.axes[0].collections[0].get_array()).size == 5
    assert "full" in texts(figure)


def test_labels_of_a_kind_have_shades_of_their_own() -> None:
    colours = label_colours(["full", "window 16x16", "window 8x8", "linear hedgehog", LINEAR])
    assert list(colours) == ["linear hedgehog", LINEAR, "window 8x8", "window 16x16", "full"]
    grey = [np.dot(to_rgb(colour), (0.299, 0.587, 0.114)) for colour in colours.values()]
    assert len({round(float(each), 2) for each in grey}) == 5


def test_short_names() -> None:
    assert short_names(["blocks.0.attn"]) == ("", ["blocks.0.attn"])
    assert short_names(["a.0.b.1.c", "a.2.b.0.c"]) == ("a.*.c", ["0.b.1", "2.b.0"])
    assert short_names(["attn", "attn.attn"]) == ("", ["attn", "attn.attn"])
