"""Latencies by kind of attention, in the place of those of tiny models, where full attention is the fastest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

from jetvit.cost_model import AttentionShape, Choice, Latency
from jetvit.search import model_latency
from jetvit.search.model_latency import MeasuredHere, WholeLatencies

MS = {"full": 10.0, "window": 4.0, "linear": 3.0}
REST_MS = 50.0


@contextmanager
def fixed_latencies() -> Iterator[None]:
    """Within it, nothing is timed: full attention takes 10 ms, windows 4, linear attention 3, and all else 50."""

    def choices(choices: Sequence[Choice], shape: AttentionShape) -> dict[Choice, Latency]:
        return {choice: Latency(*[MS[choice.kind]] * 3, 1) for choice in choices}

    def whole(self: MeasuredHere, plans: Sequence[Mapping[str, Choice]]) -> WholeLatencies:
        full_ms = REST_MS + MS["full"] * len(self._trial.sites)
        saved = [sum(MS["full"] - MS[choice.kind] for choice in plan.values()) for plan in ({}, *plans)]
        return WholeLatencies(tuple((full_ms - ms,) * 5 for ms in saved))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_latency, "measure_choices", choices)
        patch.setattr(MeasuredHere, "whole", whole)
        patch.setattr("jetvit.cost_model.steadiness._waited_s", lambda: 0.0)
        yield
