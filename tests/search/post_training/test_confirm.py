"""The path that a search selected, timed as a whole model before it is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch import Tensor

from jetvit.cost_model import FULL, Choice
from jetvit.cost_model.predicting.estimate import Answer
from jetvit.patterns.errors import PlanError
from jetvit.search.calibration.model_latency import WholeLatencies
from jetvit.search.post_training.confirm import Confirmation, refuse_slower

WINDOW = Choice("window", window=(2, 2))
WEIGHTS: dict[str, Tensor] = {}


@dataclass
class FixedSource:
    """The original takes 100 ms, a plan `plan_ms`."""

    plan_ms: tuple[float, ...]
    doubts: list[str] = field(default_factory=list)
    confirms: bool = True
    share: float = 1.0

    def whole(self, plans: Sequence[Mapping[str, Choice]], weights: Mapping[str, Tensor]) -> WholeLatencies:
        assert weights == WEIGHTS
        assert plans == [{"a": WINDOW}]  # what stays full is no part of a plan to time
        return WholeLatencies(((100.0,) * len(self.plan_ms), self.plan_ms))

    def alone(self, alternatives: Mapping[str, Sequence[Choice]]) -> dict[str, dict[Choice, Answer]]:
        raise AssertionError("whole models are timed")

    def record(self) -> dict[str, Any]:
        return {}


def confirmed(*plan_ms: float, doubts: Sequence[str] = ()) -> Confirmation:
    source: Any = FixedSource(plan_ms, list(doubts))
    return Confirmation.of(source, {"a": WINDOW, "b": FULL}, WEIGHTS)


def test_the_record_of_a_confirmed_plan() -> None:
    found = confirmed(50.0, 50.0, 40.0)
    assert found.record() == {
        "confirmed": True,
        "speedup": [2.0, 2.0, 2.5],
        "eager_full_ms": 100.0,
        "eager_plan_ms": 50.0,
    }
    assert Confirmation.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_busy_machine_confirms_nothing() -> None:
    found = confirmed(50.0, doubts=["the process waited for a core 60% of the time"])
    record = found.record()
    assert record["confirmed"] is False
    assert "speedup" not in record
    assert record["too_busy"] == ["the process waited for a core 60% of the time"]


@pytest.mark.parametrize("plan_ms", [100.0, 113.0])
def test_a_plan_that_is_no_faster_is_refused(plan_ms: float) -> None:
    refuse_slower(100.0, 99.0, "measured")
    with pytest.raises(PlanError, match="no plan is faster than the original") as caught:
        refuse_slower(100.0, plan_ms, "measured as whole models")
    assert caught.value.why == (
        f"the best one takes {plan_ms:.4g} ms, and the original 100 ms, measured as whole models"
    )
