"""The program behind the table of what drift costs: its plans, its measurements, its table and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.drift_cost.measure import Probe, attention, main
from benchmarks.drift_cost.plans import Candidate, candidates, spread
from benchmarks.drift_cost.plot import local_mean, plot
from benchmarks.drift_cost.table import BANDS, LINEAR, ORDERED, RANDOM, drift_cost_lines, drift_cost_sentence
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.passes.frontends.capture import export_model
from jetvit.search import check_plan, check_task
from jetvit.search.calibration.trial import Trial
from jetvit.search.post_training.train import Run
from tests.search.tiny import FEW, SIZE, TASKS, WINDOW, noise, plain, small


@pytest.mark.parametrize("name", ["segmentation", "depth"])
def test_its_numbers_are_those_of_check(name: str):
    """The drift of `check_plan`, and the metric of `check_task` with the same head, on test images alone."""
    model, task, data = small(), TASKS[name], noise(name)
    probe = Probe(model, task, data, FEW, Run())
    chosen = {probe.sites[0].name: WINDOW, probe.sites[1].name: Choice("linear")}
    cost = probe.cost(chosen)
    plan = Plan(tuple(SitePlan(*item) for item in chosen.items()), Fingerprint.of(probe.sites))
    images = [data.test[place].image[None] for place in range(len(data.test))]
    assert cost.drift == pytest.approx(check_plan(model, plan, images).drift, rel=1e-4)
    report = check_task(model, plan, data.test, task, head=probe.head, batch=FEW.batch)
    assert probe.original == pytest.approx(report.original, abs=1e-4)
    assert cost.value == pytest.approx(report.plan, abs=1e-4)
    assert cost.difference == pytest.approx(report.difference, abs=1e-4)
    assert probe.bootstrap_run == report.record["bootstrap_run"]


def test_a_plan_that_changes_nothing_costs_nothing_and_leaves_the_head_as_it_is():
    probe = Probe(small(), TASKS["segmentation"], noise("segmentation"), FEW, Run())
    before = {name: value.clone() for name, value in probe.head.state_dict().items()}
    probe.cost({probe.sites[0].name: WINDOW})
    cost = probe.cost({})
    assert (cost.drift, cost.value, cost.difference) == (0, probe.original, (0, 0, 0))
    assert all(torch.equal(value, before[name]) for name, value in probe.head.state_dict().items())


def test_candidates_are_distinct_and_have_the_drift_that_calibrate_measures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.drift_cost.plans.WINDOWS", (Choice("window", window=(1, 1)), WINDOW))
    generator = torch.Generator().manual_seed(0)
    pairs = [plain(torch.randn(2, 3, *SIZE, generator=generator)) for _ in range(2)]
    trial = Trial(export_model(small(3), *pairs[0]), pairs)
    found = candidates(trial, draws=8, seed=0)
    assert {each.kind for each in found} == {ORDERED, RANDOM, LINEAR}
    assert len({tuple(sorted(each.chosen.items(), key=str)) for each in found}) == len(found)
    assert all(each.drift == trial.joint(each.chosen) > 0 for each in found)
    ordered = [each.chosen for each in found if each.kind == ORDERED and WINDOW in each.chosen.values()]
    alone = trial.alone({site.name: [WINDOW] for site in trial.sites})
    assert list(ordered[0]) == [min(alone, key=lambda site: alone[site][WINDOW])]
    assert [len(chosen) for chosen in ordered] == [1, 2, 3]
    assert candidates(trial, draws=8, seed=0) == found


def test_each_band_has_at_most_so_many_of_each_kind():
    some = [Candidate(kind, {}, drift / 100) for kind in (ORDERED, LINEAR) for drift in range(1, 300)]
    chosen = spread(some, {ORDERED: 3, LINEAR: 1, RANDOM: 2})
    for low, high in BANDS:
        kinds = [each.kind for each in chosen if low < each.drift <= high]
        assert kinds == [ORDERED] * 3 + [LINEAR]
    assert max(each.drift for each in chosen) <= 2
    assert [each.drift for each in chosen[:3]] == [0.01, 0.04, 0.07]


def test_a_plan_in_short():
    chosen = {"a": Choice("window", window=(16, 16)), "c": Choice("linear")}
    assert attention(chosen, ["a", "b", "c"]) == "W16 F L"


def row(data: str, drift: float, difference: float, kind: str = ORDERED) -> dict[str, Any]:
    return {
        "data": data,
        "kind": kind,
        "drift": str(drift),
        "metric": {"camvid": "miou", "nyuv2": "delta1"}[data],
        "original": "0.5368",
        "difference": str(difference),
        "low": str(difference - 0.01),
        "high": str(difference + 0.01),
    }


def test_the_table_has_the_median_and_the_worst_window_plan_of_each_band():
    drifts = ((0.05, -0.001), (0.15, -0.01), (0.16, 0.002), (0.2, -0.02), (2.5, -0.5))
    rows = [row(data, *each) for data in ("camvid", "nyuv2") for each in drifts]
    lines = drift_cost_lines([*rows, row("nyuv2", 0.4, -0.1), row("camvid", 0.4, -0.3, LINEAR)])
    assert lines[0].startswith("| `max_drift` | drift of the plans | CamVid: plans | mIoU (original: 0.537), change in")
    assert lines[2] == "| 0.1 | 0 to 0.1 | 1 | **-0.1** | -0.1 | 1 | **-0.1** | -0.1 |"
    assert lines[3] == "| 0.2 | 0.1 to 0.2 | 3 | **-1.0** | -2.0 | 3 | **-1.0** | -2.0 |"
    assert lines[5] == "| 0.5 | 0.35 to 0.5 | 0 |  |  | 1 | **-10.0** | -10.0 |"
    assert len(lines) == 2 + len(BANDS)


def test_the_sentence_names_the_images_and_the_costliest_linear_plan():
    images = {"images": "40", "size": "288x384"}
    rows = [row("nyuv2", 0.4, -0.3) | images, row("nyuv2", 0.25, -0.121, LINEAR) | images]
    assert drift_cost_sentence(rows) == (
        "Read: NYUv2, 40 images of 288×384. "
        "Of the plans with linear attention one of drift 0.25 loses most: 12.1 points of δ1."
    )
    assert drift_cost_sentence(rows[:1]) == "Read: NYUv2, 40 images of 288×384."


def test_the_local_mean_follows_the_plans_nearby():
    drift, mean = local_mean(np.array([1.0, 0.01, 1.0]), np.array([-8.0, -1.0, -6.0]))
    assert (drift[0], drift[-1]) == pytest.approx((0.01, 1))
    assert (mean[0], mean[-1]) == pytest.approx((-1, -7))
    assert (np.diff(mean) <= 1e-9).all()


def test_the_picture_is_written(tmp_path: Path):
    rows = [
        row(data, drift, -drift / 10, kind)
        for data in ("camvid", "nyuv2")
        for kind, drift in ((ORDERED, 0.1), (LINEAR, 1.0))
    ]
    plot(rows, tmp_path / "drift.png")
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_without_data_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("JETVIT_DATA", raising=False)
    main([])
    assert "not measured: give --data DIR" in capsys.readouterr().out
