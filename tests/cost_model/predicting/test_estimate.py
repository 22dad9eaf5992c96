"""Whole graphs from their operations: the sum, the fitted overheads, and what they are made of."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetvit.cost_model.measuring.graph_operations import GraphOperations
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.predicting.estimate import Answer, Overheads, Run, estimate

SMALL = Operation("gelu", "float16", 1, 1, 10, inputs=8)
LARGE = Operation("gemm", "float16", 1, 1, 10, inputs=8, outputs=8)
ANSWERS = {
    SMALL: Answer(1.0, 0.5, 2.0, "measured"),
    LARGE: Answer(3.0, 2.0, 5.0, "predicted", extrapolated=True),
}
WORK = GraphOperations(Counter({SMALL: 4, LARGE: 2}), Counter({"aten.cat.default": 3}))


def test_the_plain_sum() -> None:
    result = estimate(WORK, ANSWERS.__getitem__)
    assert (result.ms, result.low, result.high) == (10.0, 6.0, 18.0)
    assert [(part.operation, part.count) for part in result.parts] == [(LARGE, 2), (SMALL, 4)]
    assert result.measured_share == 0.4
    assert result.extrapolated
    assert result.others == {"aten.cat.default": 3}


def test_the_overheads_of_the_device() -> None:
    assert WORK.launches == 9
    assert estimate(WORK, ANSWERS.__getitem__, Overheads(0.5, 0.1, 0.8)).ms == pytest.approx(0.5 + 0.9 + 8.0)


def test_a_graph_without_work() -> None:
    result = estimate(GraphOperations(Counter(), Counter()), ANSWERS.__getitem__)
    assert (result.ms, result.parts, result.measured_share, result.extrapolated) == (0.0, (), 1.0, False)


@given(
    truth=st.tuples(st.floats(0, 2), st.floats(0, 0.1), st.floats(0.5, 1.2)),
    runs=st.lists(st.tuples(st.floats(1, 100), st.integers(10, 500)), min_size=5, max_size=9),
)
def test_exact_runs_are_fitted_exactly(truth: tuple[float, float, float], runs: list[tuple[float, int]]) -> None:
    # Runs that tell the terms apart whatever else was drawn.
    runs = [*runs, (1.0, 10), (100.0, 10), (1.0, 500)]
    known = Overheads(*truth)
    fitted = Overheads.fit([Run(ms, launches, known.apply(ms, launches)) for ms, launches in runs])
    for ms, launches in runs:
        assert fitted.apply(ms, launches) == pytest.approx(known.apply(ms, launches), rel=1e-6)


def test_no_term_is_negative() -> None:
    fitted = Overheads.fit([Run(10, 10, 5), Run(20, 10, 14), Run(10, 40, 4), Run(40, 20, 33)])
    assert min(fitted.fixed_ms, fitted.launch_ms, fitted.overlap) >= 0


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "0 runs determine 0 of three terms"),
        ([Run(1, 10, 1), Run(2, 20, 2)], "2 runs determine"),
        ([Run(1, 10, 1), Run(2, 20, 2), Run(3, 30, 3)], "3 runs determine 2 of three terms: measure models of other"),
        ([Run(1, 10, 0.0)], "a run has no latency above 0"),
    ],
)
def test_too_few_runs_are_refused(runs: list[Run], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Overheads.fit(runs)
