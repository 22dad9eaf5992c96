"""`bench`: three columns in one run, and an honest ratio."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from jetvit.bench import COMPILED, EAGER, JETVIT, BenchResult, bench
from jetvit.cost_model.measuring import steadiness
from jetvit.cost_model.predicting.estimate import Overheads
from jetvit.patterns.errors import InputError, JetvitError
from tests.jetvit.costs import made_up_costs
from tests.zoo import CASES


@pytest.fixture(scope="module")
def result() -> BenchResult:
    case = CASES["sdpa"]
    args, kwargs = case.inputs()
    steps: list[tuple[str, int, int]] = []
    costs = made_up_costs(overheads={"eager": Overheads(1.0), "compiled": Overheads(2.0)})
    found = bench(case.build(), *args, kwargs=kwargs, rounds=5, costs=costs, progress=lambda *step: steps.append(step))
    assert steps[-1] == ("measuring", 5, 5)
    assert ("compiling", 3, 3) in steps
    return found


def test_three_columns_with_a_sample_a_round(result: BenchResult):
    assert [column.name for column in result.columns] == [EAGER, COMPILED, JETVIT]
    for column in result.columns:
        assert len(column.samples_ms) == result.rounds == 5
        assert column.q25_ms <= column.median_ms <= column.q75_ms
        assert column.images_per_s == pytest.approx(2e3 / column.median_ms)
    assert result.ratio_low <= result.ratio <= result.ratio_high


def test_the_record_and_the_text(result: BenchResult):
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["environment"]["shape"] == "2×3×32×48"
    assert record["choices"] == {"full": 2}
    text = str(result)
    assert "attention sites: 2 full" in text
    assert "no plan was given: jetvit made only exact rewrites" in text
    assert max(map(len, text.splitlines())) <= 120


def test_predictions_stand_beside_the_columns(result: BenchResult):
    found = result.predictions
    assert found is not None
    assert list(found.columns) == [EAGER, COMPILED, JETVIT]
    assert found.columns[COMPILED].ms == pytest.approx(found.columns[EAGER].ms + 1)
    for column in result.columns:
        predicted = found.columns[column.name]
        assert predicted.deviation == pytest.approx(predicted.ms / column.median_ms - 1)
    assert found.ratio == 1.0  # without a plan both run the same operations


def test_a_busy_machine_is_said(monkeypatch: pytest.MonkeyPatch):
    case = CASES["sdpa"]
    args, kwargs = case.inputs()
    waited = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr(steadiness, "_waited_s", lambda: float(next(waited)))
    steps: list[tuple[str, int, int]] = []
    busy = bench(case.build(), *args, kwargs=kwargs, rounds=5, progress=lambda *step: steps.append(step))
    assert steps.count(("measuring", 5, 5)) == 3
    text = str(busy)
    assert "This machine is too busy to time on:\n  the process waited for a core 100% of the time" in text
    assert "None of these numbers counts" in text
    assert "rounds can tell apart" not in text
    assert json.loads(json.dumps(busy.to_dict()))["doubts"] == list(busy.doubts)
    assert max(map(len, text.splitlines())) <= 120


def test_refusals():
    image = torch.zeros(1, 3, 32, 48)
    model = CASES["sdpa"].build()
    with pytest.raises(InputError, match="4 rounds cannot give quartiles"):
        bench(model, image, rounds=4)
    with pytest.raises(InputError, match="no mode 'fast'"):
        bench(model, image, mode="fast")
    with pytest.raises(InputError, match="nothing to time the model on"):
        bench(model)
    with pytest.raises(JetvitError, match="does not run on these inputs"):
        bench(nn.Linear(3, 3), image)
