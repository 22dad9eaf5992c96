"""The report on whole plans: real models are timed, no group is predicted from itself, and regret is what it says."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.whole_plans import measure as whole_plans
from benchmarks.whole_plans.measure import made_up_losses, main, predict, regrets
from benchmarks.whole_plans.plot import undominated
from benchmarks.whole_plans.runs import CHOICES, Group, measure_group, sample_plans
from jetvit.cost_model.measuring.measurement import Measurement
from jetvit.cost_model.measuring.runs import WholeRun, append_runs, read_runs, runs_path
from jetvit.cost_model.measuring.table import TableWriter
from jetvit.cost_model.measuring.timing import Latency
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from tests.cost_model.tables import MACHINE, NOW

GROUPS = [
    Group(2, 16, depth, 1, size, batch)
    for depth, size, batch in ((2, (160, 160), 1), (3, (160, 288), 2), (4, (192, 192), 1))
]


@pytest.fixture(scope="module")
def runs() -> list[WholeRun]:
    """What the groups run, really timed, but briefly."""
    return [run for g in GROUPS for run in measure_group(g, MACHINE, torch.device("cpu"), plans=7, passes=2)]


@pytest.fixture
def table(runs: list[WholeRun], tmp_path: Path) -> Path:
    """A made-up table of all that the runs run, and runs whose latencies follow from it."""
    path = tmp_path / "t.csv"
    operations = sorted({each.key for run in runs for each in run.operations.counted}, key=str)
    with TableWriter(path, MACHINE) as writer:
        for each in operations:
            ms = 0.01 + each.flops / 1e8 + each.bytes / 1e7
            writer.append(Measurement(MACHINE, each, Latency(ms, ms, ms, 9), "", NOW))
    costs, made = DeviceCosts.load(path), []
    for run in runs:
        ms = 0.5 + 0.02 * run.operations.launches + 0.9 * costs.estimate(run.operations).ms
        made.append(
            WholeRun(MACHINE, run.model, run.plan, "eager", run.operations, Latency(ms, ms * 0.99, ms * 1.01, 9))
        )
    append_runs(runs_path(path), made)
    return path


@pytest.mark.slow
def test_models_are_really_timed(runs: list[WholeRun]) -> None:
    assert Counter(run.model for run in runs) == {str(group): 7 for group in GROUPS}
    for run in runs:
        plan, counted = Counter(run.plan.split()), run.operations.counted
        assert sum(n for each, n in counted.items() if each.window_h == 8) == plan["W8"]
        assert sum(n for each, n in counted.items() if each.op == "linear") == plan["L"] + plan["L3"]
        assert sum(n for each, n in counted.items() if each.conv_size == 3) == plan["L3"]
        # A window of 16 covers grids of 10x10 and 12x12, and not 10x18.
        wide = "288" in run.model
        assert sum(n for each, n in counted.items() if each.window_h == 16) == (plan["W16"] if wide else 0)
        assert run.latency.reps == 2


def test_overheads_come_from_the_other_groups(table: Path) -> None:
    costs, runs = DeviceCosts.load(table), read_runs(runs_path(table))
    for rated in predict(runs, costs).values():
        for run, each in rated:
            assert each.ms == pytest.approx(run.latency.median_ms, rel=1e-6)
    spoiled = str(GROUPS[0])
    wrong = [
        WholeRun(run.machine, run.model, run.plan, run.mode, run.operations, Latency(1e4, 1e4, 1e4, 1))
        if run.model == spoiled
        else run
        for run in runs
    ]
    rated = predict(wrong, costs)["eager", spoiled]
    assert [each.ms for _, each in rated] == pytest.approx(
        [run.latency.median_ms for run in runs if run.model == spoiled], rel=1e-6
    )


def test_the_report(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "whole_plans.csv"
    assert main(["--table", str(table), "-o", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert [row["group"] for row in rows] == [*map(str, GROUPS), "all"]
    total = rows[-1]
    assert float(total["mape_pct"]) < 0.1
    assert float(total["spearman"]) == pytest.approx(1)
    assert float(total["regret_pct"]) == float(total["worst_regret_pct"]) == 0
    assert float(total["measured_share_pct"]) == 100
    assert (total["latencies_of"], total["table"]) == ("Some CPU with 2 threads", "t.csv")
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert "spearman 1.0" in capsys.readouterr().out


def test_what_is_known_is_not_timed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[WholeRun]
) -> None:
    table, asked = tmp_path / "t.csv", []
    monkeypatch.setattr(whole_plans, "CPU_GROUPS", GROUPS)
    monkeypatch.setattr(whole_plans, "this_machine", lambda *args: MACHINE)

    def measure(group: Group, *args: object, **options: object) -> list[WholeRun]:
        asked.append(group)
        return [run for run in runs if run.model == str(group)]

    monkeypatch.setattr(whole_plans, "measure_group", measure)
    append_runs(runs_path(table), measure(GROUPS[1]))
    asked.clear()
    whole_plans.measure(table, torch.device("cpu"), compiled=False)
    assert asked == [GROUPS[0], GROUPS[2]]
    asked.clear()
    whole_plans.measure(table, torch.device("cpu"), compiled=False)
    assert asked == []


@given(st.integers(2, 12), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_regret(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plans = sample_plans(3, count, seed)
    measured = rng.uniform(1, 2, len(plans))
    first, of_top = regrets(plans, measured, measured)
    assert not first.any()
    assert not of_top.any()
    first, of_top = regrets(plans, measured, rng.uniform(1, 2, len(plans)))
    assert (of_top <= first).all()
    assert (of_top >= 0).all()
    assert (first <= measured.max() / measured.min() - 1 + 1e-9).all()


def test_regret_by_hand() -> None:
    # The fastest by prediction is the slowest of all: the loss of a plan decides among which it is compared.
    plans = [("F",), ("L",), ("W8",), ("W16",), ("L3",)]
    measured, predicted = np.array([5.0, 1.0, 3.0, 4.0, 2.0]), np.array([1.0, 5.0, 3.0, 2.0, 4.0])
    loss = made_up_losses(plans, 0)
    assert np.argsort(loss).tolist() == [0, 3, 2, 4, 1]
    first, of_top = regrets(plans, measured, predicted)
    assert first[:4].tolist() == pytest.approx([5 / 4 - 1, 5 / 3 - 1, 5 / 2 - 1, 5 / 1 - 1])
    assert of_top[:4].tolist() == pytest.approx([0, 0, 3 / 2 - 1, 3 / 1 - 1])


@given(st.integers(1, 6), st.integers(1, 40))
def test_sampled_plans_are_distinct_and_the_same_each_time(depth: int, count: int) -> None:
    plans = sample_plans(depth, count, 1)
    assert plans == sample_plans(depth, count, 1)
    assert len(set(plans)) == len(plans) == min(count, len(CHOICES) ** depth)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    ms, loss = np.array(points, float).T
    found = {points[index] for index in undominated(ms, loss)}
    beaten = {p for p in points if any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert found == set(points) - beaten
