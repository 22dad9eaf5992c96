"""The demo, shrunk: its steps, its files, and what it does not claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from jetvit.api import find_attention
from jetvit.cli import main
from jetvit.cost_model import Plan
from jetvit.demo import SmallViT, run_demo
from jetvit.images import synthetic_images


def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def small(folder: Path, **options: object):
        return run_demo(folder, size=(64, 96), depth=3, rounds=5, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("jetvit.commands.demo.run_demo", small)
    folder = tmp_path / "out" / "demo"
    assert main(["demo", "-o", str(folder)]) == 0
    out = capsys.readouterr().out
    for step in ("1. found     3 full attentions", "2. timed", "3. planned", "4. compiled", "Result: compiled full"):
        assert step in out
    assert "the quality is not, and no drift was measured" in out
    plan = Plan.load(folder / "plan")
    assert [site.choice.kind for site in plan.sites] == ["window", "window", "full"]
    assert all(one.drift is None for site in plan.sites for one in site.measured)
    assert plan.match(find_attention(SmallViT(3).eval(), synthetic_images(1, (128, 64))))
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!")


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("mine")
    assert main(["demo", "-o", str(tmp_path / "file")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback" not in err
