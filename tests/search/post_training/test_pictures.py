"""Pictures of a search: which are written, and which folders are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from jetvit.patterns.errors import InputError
from jetvit.search.post_training.pictures import draw
from tests.search.traces import trace_record, write_search
from tests.zoo.quick import sweep

NAMES = ("sites", "full_blocks", "training", "trade_off")


@pytest.mark.parametrize(
    ("count", "windows", "fulls"),
    sweep([(1, 1, 1), (12, 4, 2), (40, 40, 40), (4, 0, 0)], quick=[(1, 1, 1), (12, 4, 2), (4, 0, 0)]),
)
@pytest.mark.filterwarnings("error")
def test_pictures_are_written(tmp_path: Path, count: int, windows: int, fulls: int) -> None:
    folder = write_search(tmp_path / "search", trace_record(count, windows, fulls))
    written = draw(folder, tmp_path / "out" / "pictures")
    assert written == [tmp_path / "out" / "pictures" / f"{name}.png" for name in NAMES]
    for path in written:
        height, width, _ = imread(path).shape
        assert width == 1000
        assert 300 < height < 1300


def test_they_stand_in_the_folder_of_the_search(tmp_path: Path) -> None:
    assert [path.parent for path in draw(write_search(tmp_path, trace_record(3, 1, 1)))] == [tmp_path] * 4


def test_unfinished_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not finished"):
        draw(tmp_path)


@pytest.mark.parametrize("text", ["", '{"task": "segm', "[]", "{}", '{"sites": 3}', "\udcff"])
def test_damaged_trace_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_search(tmp_path, trace_record(2, 1, 1))
    (folder / "trace.json").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=r"the trace of the search is damaged[\s\S]*trace\.json"):
        draw(folder)


def test_trace_with_a_site_that_a_path_lacks_is_refused(tmp_path: Path) -> None:
    trace = trace_record(3, 1, 1)
    trace["sites"].append("another")
    with pytest.raises(InputError, match="another"):
        draw(write_search(tmp_path, trace))


def test_damaged_losses_are_refused(tmp_path: Path) -> None:
    folder = write_search(tmp_path, trace_record(2, 1, 1))
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
