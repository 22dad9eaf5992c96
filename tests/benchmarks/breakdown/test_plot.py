"""A record as text and as a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.breakdown import plot as breakdown_plot
from benchmarks.breakdown.kinds import KINDS, Floor, Kernel, Profile, record
from benchmarks.breakdown.plot import plot, table

NAMES = [
    *(
        "nvjet_tst_128x256",
        "kv_partials_0",
        "attend_windows_1",
        "rotate_2",
        "triton_poi_fused_gelu_3",
        "Memset (Device)",
    ),
    *("triton_per_fused_native_layer_norm_4", "triton_poi_fused_cat_5", "sm90_xmma_fprop_implicit_gemm_cudnn", "new"),
]


def made_up(dry: bool = False) -> dict:
    """A record with all kinds and a floor above, below and far beyond what is there."""
    kernels = tuple(Kernel(name, 100.0 * i, 90.0 - 8 * i) for i, name in enumerate(NAMES))
    floor = {"matrix product": Floor(0.08, 0.01, 0.08), "norm": Floor(0, 0.06, 0.06), "pointwise": Floor(0, 0.3, 0.3)}
    known = {"device": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "dry": str(dry)}
    about = {"model": "DINOv3-L", "size": "1024x2048", "variant": "hybrid 2 FA", "batch": 1}
    about |= {"dtype": "bfloat16", "weights": "random", "launched": "CUDA graph"}
    return record(Profile(1.0, 0.46, kernels), 0.98, floor, known, about)


def test_the_table_shows_kinds_kernels_and_what_no_rule_knows() -> None:
    text = table(made_up())
    assert "DINOv3-L, hybrid 2 FA, 1024x2048, NVIDIA H100 80GB HBM3" in text
    assert "floor (computed), ms" in text
    assert all(kind in text for kind in KINDS)
    assert all(name in text for name in NAMES)
    assert "no rule knows: new" in text


def test_a_long_name_is_cut() -> None:
    found = made_up()
    found["kernels"][0]["name"] = "x" * 5000
    assert max(len(line) for line in table(found).splitlines()) < 160


@pytest.mark.parametrize("dry", [False, True])
def test_the_picture_names_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: bool) -> None:
    drawn = []
    monkeypatch.setattr(breakdown_plot.plt, "close", drawn.append)
    plot(made_up(dry), tmp_path / "it.png")
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["it.png"]
    (figure,) = drawn
    (panel,) = figure.axes
    assert {label.get_text() for label in panel.get_yticklabels()} == set(KINDS)
    assert panel.get_title(loc="left").startswith("DRY RUN") == dry
    texts = [text for text in panel.texts if " ms · " in text.get_text()]
    assert len(texts) == len(KINDS)
    assert sum("floor (computed)" in text.get_text() for text in texts) == 3
    # Nothing is written over anything else, and nothing outside the picture.
    boxes = [text.get_window_extent() for text in (*panel.texts, panel._left_title)]
    whole = figure.bbox
    assert max(box.x1 for box in boxes) <= whole.x1
    assert max(box.y1 for box in boxes) <= whole.y1
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_picture_is_drawn_again_from_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "it.json").write_text(json.dumps(made_up()))
    monkeypatch.setattr(sys, "argv", ["breakdown_plot", str(tmp_path / "it.json")])
    breakdown_plot.main()
    assert (tmp_path / "it.png").exists()
