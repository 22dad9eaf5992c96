"""Latencies by kind of attention, in the place of those of tiny models, where full attention is the fastest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from jetvit.cost_model import AttentionShape, Choice, Latency
from jetvit.cost_model.measuring.rounds import Sampler
from jetvit.search.calibration import model_latency

MS = {"full": 10.0, "window": 4.0, "linear": 3.0}
FULL_MS, PLAN_MS = 100.0, 80.0


@contextmanager
def fixed_latencies() -> Iterator[None]:
    """Within it, full attention takes 10 ms, windows 4, linear 3; whole models run, and take 100 and 80 ms."""

    def choices(choices: Sequence[Choice], shape: AttentionShape) -> dict[Choice, Latency]:
        return {choice: Latency(*[MS[choice.kind]] * 3, 1) for choice in choices}

    def rounds(samplers: Sequence[Sampler], count: int, **_: object) -> list[list[float]]:
        for sample in samplers:
            sample()
        return [[FULL_MS if index == 0 else PLAN_MS] * 5 for index in range(len(samplers))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_latency, "measure_choices", choices)
        patch.setattr(model_latency, "in_rounds", rounds)
        patch.setattr("jetvit.cost_model.measuring.steadiness._waited_s", lambda: 0.0)
        yield
