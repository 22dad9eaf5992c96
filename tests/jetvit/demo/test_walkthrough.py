"""The demo, shrunk: its steps, its files, and what it says of the quality."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import jetvit
from jetvit.bench import EAGER, JETVIT, BenchResult, Column
from jetvit.cli import main
from jetvit.cost_model import Fingerprint, Plan
from jetvit.demo.page import PICTURES
from jetvit.demo.result import DemoResult
from jetvit.demo.scenes import SceneSplit
from jetvit.demo.small_vit import load_small_vit
from jetvit.demo.walkthrough import RECIPE, run_demo
from jetvit.patterns.site import Sites
from jetvit.search import Schedule
from tests.search.fixed_latencies import fixed_latencies

STEPS = Schedule(2, 1e-4)
FEW = replace(RECIPE, local=STEPS, supernet=STEPS, distil=STEPS, score_steps=1, select_images=2, candidates=2)


def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    results: list[DemoResult] = []

    def small(folder: Path, **options: Any) -> DemoResult:
        results.append(run_demo(folder, size=(64, 64), rooms=(4, 2, 4), recipe=FEW, rounds=5, **options))
        return results[0]

    monkeypatch.setattr("jetvit.commands.demo.run_demo", small)
    folder = tmp_path / "out" / "demo"
    with fixed_latencies():
        assert main(["demo", "-o", str(folder)]) == 0
    out = capsys.readouterr().out
    for words in ("1. found     8 full attentions over 65 tokens", "2. searched", "3. compiled", "4 test rooms"):
        assert words in out

    (demo,) = results
    test = demo.plan.provenance["test"]
    assert f"{test['plan']['delta1']:.3f}" in out
    assert f"{demo.result.ratio:.2f}× ({demo.result.ratio_low:.2f} – {demo.result.ratio_high:.2f})" in out
    assert {path.name for path in folder.iterdir()} == {"plan", "report.html", *PICTURES}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!")
    for words in (f"{test['plan']['delta1']:.3f}", f"{demo.result.ratio:.2f}×", demo.verdict(), "images/s", "<svg"):
        assert words in page
    assert page.count('<img src="data:image/png;base64,') == len(PICTURES)
    assert all(name in out for name in PICTURES)

    plan, (model, room) = Plan.load(folder / "plan"), (load_small_vit(), SceneSplit(1, (64, 64), 9)[0])
    assert 0 < [site.choice.kind for site in plan.sites].count("full") <= 2
    with torch.inference_mode():
        planned = jetvit.optimize(model, room.image[None], plan=plan)(room.image[None])
        assert (planned - model(room.image[None])).abs().max() > 1e-3


def made_up_demo(record: dict[str, Any]) -> DemoResult:
    """A demo that was not run, with this record of its plan."""
    columns = tuple(Column(name, ms, ms - 1, ms + 1, 1e3 / ms, ()) for name, ms in ((EAGER, 60), (JETVIT, 40)))
    environment = {"device": "AMD EPYC", "threads": 2, "torch": "2.13.0"}
    result = BenchResult(columns, 1.25, 1.2, 1.3, 15, True, {"full": 1}, environment)
    return DemoResult(Sites(), Plan((), Fingerprint(()), provenance=record), 0.1, result)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((-0.004, 0.002), "The plan is not inferior to the original at the margin of 0.005."),
        ((-0.02, 0.002), "It is not shown that the plan is as good"),
        ((-0.03, -0.001), "The plan is worse than the original, not non-inferior at the margin of 0.005"),
    ],
)
def test_what_is_said_of_the_quality(interval: tuple[float, float], words: str):
    low, high = interval
    test = {
        "original": {"delta1": 0.8},
        "plan": {"delta1": 0.79},
        "plan_minus_original": [(low + high) / 2, low, high],
        "non_inferior_to_original": low > -0.005,
        "margin": 0.005,
    }
    assert made_up_demo({"test": test, "images_test": 32}).verdict().startswith(words)


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("mine")
    assert main(["demo", "-o", str(tmp_path / "file")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "Traceback" not in err
