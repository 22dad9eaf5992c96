"""The demo, shrunk: its steps, its files, and what it does not claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from jetvit.api import find_attention
from jetvit.cli import main
from jetvit.cost_model import AttentionShape, Choice, Latency, Plan
from jetvit.demo import SmallViT, run_demo
from jetvit.images import synthetic_images


def latencies(full_ms: float):
    """Timings that do not hang on how busy the machine is."""

    def measure(choices: list[Choice], shape: AttentionShape, **_: object) -> dict[Choice, Latency]:
        ms = {choice: full_ms if choice.kind == "full" else 2.0 for choice in choices}
        return {choice: Latency(ms[choice], ms[choice], ms[choice], 1) for choice in choices}

    return measure


def test_no_window_is_taken_that_is_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jetvit.demo.measure_choices", latencies(full_ms=1.0))
    said: list[str] = []
    result = run_demo(tmp_path, size=(64, 96), depth=3, rounds=5, say=said.append)
    assert all(site.choice.kind == "full" for site in result.plan.sites)
    assert any("no window was faster" in line for line in said)


def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("jetvit.demo.measure_choices", latencies(full_ms=9.0))

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
