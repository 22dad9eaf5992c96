"""Time the path that a search selected as a whole model, before it is trained: single attentions do not tell all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from jetvit.cost_model import FULL
from jetvit.patterns.errors import PlanError
from jetvit.search.calibration.model_latency import MeasuredHere, latency_record
from jetvit.search.post_training.supernet import Path


@dataclass(frozen=True)
class Confirmation:
    """The measured latencies of the original and of the plan, in ms, not compiled.

    speedup: their ratio with its 95 % interval. doubts: reasons to distrust the timings.
    """

    full_ms: float
    plan_ms: float
    speedup: tuple[float, float, float]
    doubts: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: MeasuredHere, path: Path, weights: Mapping[str, Tensor]) -> Confirmation:
        """Time the model on `path`, with its new and changed weights, beside the original."""
        latencies = source.whole([{name: choice for name, choice in path.items() if choice != FULL}], weights)
        full_ms, plan_ms = latencies.median_ms
        return cls(full_ms, plan_ms, latencies.speedup(1), tuple(source.doubts))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Confirmation:
        """The inverse of `to_json`."""
        middle, low, high = record["speedup"]
        return cls(record["full_ms"], record["plan_ms"], (middle, low, high), tuple(record["doubts"]))

    def record(self) -> dict[str, Any]:
        """Entries for the provenance of the plan."""
        return {
            "confirmed": not self.doubts,
            **latency_record("eager", self.full_ms, self.plan_ms, self.speedup, self.doubts),
        }


def refuse_slower(full_ms: float, plan_ms: float, how: str) -> None:
    """Raise PlanError for a plan that takes as long as the original or longer. how: where the latencies come from."""
    if plan_ms >= full_ms:
        raise PlanError(
            "no plan is faster than the original",
            why=f"the best one takes {plan_ms:.4g} ms, and the original {full_ms:.4g} ms, {how}",
            do="give a budget, larger images, where attention takes a larger share, or faster choices; or allow fewer "
            "full attentions",
        )
