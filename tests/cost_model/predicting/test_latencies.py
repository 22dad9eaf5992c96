"""What was measured is answered as measured, the rest is predicted or refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jetvit.cost_model.measuring.measurement import Machine, Measurement
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.timing import Latency
from jetvit.cost_model.predicting.estimate import Answer
from jetvit.cost_model.predicting.latencies import Latencies, UnknownLatency
from jetvit.cost_model.predicting.predictor import Predictor

MACHINE = Machine("Test CPU", 2, "", "", "2.13.0", "3.9.0", "0.1.0")


def gemm(rows: int, inputs: int = 64, outputs: int = 128) -> Operation:
    return Operation("gemm", "float32", 1, 1, rows, inputs=inputs, outputs=outputs)


def measurement(operation: Operation, ms: float, machine: Machine = MACHINE) -> Measurement:
    return Measurement(machine, operation, Latency(ms, ms * 0.9, ms * 1.1, 20), "", "2026-01-01T00:00:00+00:00")


def rows() -> list[Measurement]:
    shapes = [(tokens, inputs, outputs) for tokens in (64, 256, 1024) for inputs in (64, 128) for outputs in (64, 256)]
    return [measurement(x, 0.01 + x.flops / 1e8) for x in (gemm(*shape) for shape in shapes)]


def test_what_was_measured_is_not_predicted() -> None:
    latencies = Latencies.fit(rows())
    assert latencies(gemm(256, 128, 64)) == Answer(
        pytest.approx(0.01 + gemm(256, 128, 64).flops / 1e8),
        pytest.approx(0.9 * (0.01 + gemm(256, 128, 64).flops / 1e8)),
        pytest.approx(1.1 * (0.01 + gemm(256, 128, 64).flops / 1e8)),
        "measured",
    )


def test_a_batch_of_as_many_rows_is_the_same_product() -> None:
    batch = Operation("gemm", "float32", 4, 7, 9, 1, inputs=128, outputs=64)
    assert Latencies.fit(rows())(batch).source == "measured"


def test_several_rows_are_one_answer() -> None:
    latencies = Latencies([measurement(gemm(5), ms) for ms in (1.0, 3.0, 2.0)])
    assert latencies(gemm(5)) == Answer(2.0, 1.8, pytest.approx(2.2), "measured")


def test_the_rest_is_predicted_and_says_so() -> None:
    latencies = Latencies.fit(rows())
    inside, beyond = latencies(gemm(512, 64, 256)), latencies(gemm(50_000, 64, 256))
    assert inside.source == beyond.source == "predicted"
    assert inside.low <= inside.ms <= inside.high
    assert inside.ms == pytest.approx(0.01 + gemm(512, 64, 256).flops / 1e8, rel=0.3)
    assert (inside.extrapolated, beyond.extrapolated) == (False, True)


def test_nothing_is_predicted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Operation] = []
    predict = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda self, each: asked.append(each) or predict(self, each))
    latencies = Latencies.fit(rows())
    assert latencies(gemm(512)) == latencies(gemm(512))
    assert asked == [gemm(512).key]


def test_nothing_is_made_up() -> None:
    gelu = Operation("gelu", "float32", 1, 1, 100, inputs=64)
    with pytest.raises(UnknownLatency, match="not measured, and not predicted: no gelu float32 was measured"):
        Latencies.fit(rows())(gelu)
    few = Latencies.fit([*rows(), measurement(gelu, 1.0)])
    assert few(gelu).ms == 1.0
    with pytest.raises(UnknownLatency, match=r"not predicted: gelu float32: .*10"):
        few(replace(gelu, grid_w=200))
    with pytest.raises(ValueError, match="there are no measurements"):
        Latencies.fit([])


def test_a_feature_map_that_was_not_measured_is_refused_by_its_name() -> None:
    def linear(side: int, heads: int, feature_map: str) -> Operation:
        return Operation("linear", "float32", 1, side, side, heads=heads, head_dim=16, feature_map=feature_map)

    def measured(feature_map: str) -> list[Measurement]:
        sizes = [(side, heads) for side in (4, 8, 16, 32) for heads in (1, 2, 4)]
        return [measurement(x, 0.01 + x.flops / 1e8) for x in (linear(*size, feature_map) for size in sizes)]

    relu = Latencies.fit(measured("relu"))
    assert relu(linear(20, 2, "relu")).source == "predicted"
    for feature_map in ("relu_centred", "hedgehog"):
        asked = linear(8, 2, feature_map)
        with pytest.raises(UnknownLatency, match=f"not predicted: no linear float32 {feature_map} was measured"):
            relu(asked)
        both = Latencies.fit([*measured("relu"), *measured(feature_map)])
        assert both(asked).source == "measured"
        assert both(linear(20, 2, feature_map)).source == "predicted"
        assert both(linear(20, 2, "relu")) == relu(linear(20, 2, "relu"))


def test_machines_are_never_mixed() -> None:
    other = replace(MACHINE, torch="2.12.0")
    with pytest.raises(ValueError, match="of several machines"):
        Latencies([measurement(gemm(5), 1.0), measurement(gemm(6), 1.0, other)])
