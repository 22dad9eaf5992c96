"""What a table predicts of a bench, beside what was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from jetvit.bench import COMPILED, EAGER, JETVIT, BenchResult, Column
from jetvit.bench_predictions import Predictions, predict
from jetvit.cost_model import Choice
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.cost_model.predicting.estimate import Overheads
from tests.jetvit.costs import made_up_costs
from tests.passes.models import plan_of, sites_of
from tests.zoo import CASES

MEASURED = {EAGER: 40.0, COMPILED: 25.0, JETVIT: 20.0}


def predictions(costs: DeviceCosts) -> Predictions:
    import jetvit

    program = torch.export.export(CASES["sdpa"].build(), (torch.zeros(2, 3, 128, 192),), strict=False)
    plan = plan_of(sites_of(program), (Choice("window", window=(8, 8)), Choice("full")))
    full, rewritten = jetvit.optimize(program), jetvit.optimize(program, plan=plan)
    return predict(costs, {COMPILED: (full, "compiled"), JETVIT: (rewritten, "compiled")}, MEASURED, (COMPILED, JETVIT))


def result(found: Predictions | None) -> BenchResult:
    columns = tuple(Column(name, ms, ms, ms, 1.0, (ms,) * 5) for name, ms in MEASURED.items())
    where = {"shape": "2×3×128×192", "dtype": "float32", "device": "cpu", "threads": 2, "mode": "default"}
    return BenchResult(columns, 1.25, 1.2, 1.3, 5, True, {"full": 2}, where | {"torch": "2.13.0"}, found)


def test_each_column_beside_its_measurement():
    found = predictions(made_up_costs())
    assert list(found.columns) == [COMPILED, JETVIT]
    full, ours = found.columns.values()
    assert full.low < full.ms < full.high
    assert full.ms - ours.ms == pytest.approx(12.34 - 8)
    assert full.deviation == pytest.approx(full.ms / 25 - 1)
    assert found.ratio == pytest.approx(full.ms / ours.ms)
    assert not found.overheads


def test_the_text_and_the_record():
    found = predictions(made_up_costs())
    text = str(result(found))
    assert f"predicted {found.ratio:.2f}×, measured 1.25×" in text
    assert "by the table of Some CPU with 2 threads, torch 2.13.0, with 90 % intervals\n" in text
    assert "plain sums" in text
    eager, compiled, ours = text.splitlines()[1:4]
    assert "%" not in eager
    assert compiled.endswith(" %")
    assert ours.endswith(" %")
    assert max(map(len, text.splitlines())) <= 120
    record = json.loads(json.dumps(result(found).to_dict(), allow_nan=False))
    assert record["predictions"]["columns"][JETVIT]["ms"] == found.columns[JETVIT].ms
    assert record["predictions"]["machine"] == "Some CPU with 2 threads"


def test_another_version_of_torch_is_said():
    found = replace(predictions(made_up_costs()), torch="2.12.0")
    assert "torch 2.12.0, with 90 % intervals; this is torch 2.13.0" in str(result(found))


def test_fitted_overheads_are_no_plain_sum():
    found = predictions(made_up_costs(overheads={"compiled": Overheads(5.0)}))
    assert found.columns[COMPILED].ms == pytest.approx(predictions(made_up_costs()).columns[COMPILED].ms + 5)
    assert "plain sums" not in str(result(found))


def test_what_cannot_be_predicted_is_said():
    found = predictions(made_up_costs(unknown=("window",)))
    assert list(found.columns) == [COMPILED]
    assert found.ratio is None
    assert "not predicted: compiled, jetvit: window" in str(result(found))
    nothing = str(result(predictions(made_up_costs(unknown=("gemm",)))))
    assert "off by" not in nothing
    assert "not predicted: compiled, full: gemm" in nothing


def test_without_a_table_nothing_is_said():
    assert "predict" not in str(result(None))
    assert result(None).to_dict()["predictions"] is None
