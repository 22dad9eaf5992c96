"""What lies beside a latency table is taken with it, and only if it belongs to it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from jetvit.cost_model.measuring.graph_operations import GraphOperations
from jetvit.cost_model.measuring.measurement import Machine, Measurement
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.runs import WholeRun, append_runs, runs_path
from jetvit.cost_model.measuring.table import TableWriter, read_table
from jetvit.cost_model.measuring.timing import Latency
from jetvit.cost_model.predicting.device_costs import (
    DeviceCosts,
    digest,
    find_table,
    fit_overheads,
    predictor_path,
    shipped_tables,
    stored_predictor,
)
from jetvit.cost_model.predicting.estimate import Overheads, estimate
from jetvit.cost_model.predicting.latencies import Latencies, UnknownLatency
from jetvit.cost_model.predicting.predictor import Predictor
from jetvit.cost_model.predicting.roofline import Device
from jetvit.patterns.errors import InputError
from tests.cost_model.tables import MACHINE, NOW

OTHER = replace(MACHINE, torch="2.12.0")
TRUE = Overheads(fixed_ms=1.0, launch_ms=0.1, overlap=0.8)


def gelu(rows: int, width: int = 64) -> Operation:
    return Operation("gelu", "float32", 1, 1, rows, inputs=width)


def ms_of(operation: Operation) -> float:
    return 0.01 + operation.bytes / 1e6


def write(path: Path, machine: Machine, operations: list[Operation], factor: float = 1.0) -> None:
    with TableWriter(path, machine) as writer:
        for each in operations:
            ms = factor * ms_of(each)
            writer.append(Measurement(machine, each, Latency(ms, ms, ms, 9), "", NOW))


def run(count: int, rows: int, others: int, machine: Machine = MACHINE) -> WholeRun:
    operations = GraphOperations(Counter({gelu(rows): count}), Counter({"aten.cat": others}))
    ms = TRUE.apply(count * ms_of(gelu(rows)), count + others)
    return WholeRun(machine, f"{count} times", "F", "eager", operations, Latency(ms, ms, ms, 9))


ROWS = [gelu(rows, width) for rows in (16, 64, 256, 1024) for width in (32, 64, 128, 256, 512)]
RUNS = [run(2, 16, 0), run(5, 256, 3), run(9, 1024, 1), run(4, 64, 40)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    write(path, MACHINE, ROWS)
    return path


def test_the_terms_of_the_runs_are_found(table: Path) -> None:
    append_runs(runs_path(table), [*RUNS, run(3, 64, 1, OTHER)])
    costs = DeviceCosts.load(table)
    assert (costs.machine, set(costs.overheads)) == (MACHINE, {"eager"})
    found = costs.overheads["eager"]
    assert [found.fixed_ms, found.launch_ms, found.overlap] == pytest.approx([1.0, 0.1, 0.8], rel=1e-6)
    assert found.error == pytest.approx(0, abs=1e-6)
    asked = GraphOperations(Counter({gelu(256): 7}), Counter())
    assert costs.estimate(asked, "eager").ms == pytest.approx(TRUE.apply(7 * ms_of(gelu(256)), 7))
    assert costs.estimate(asked, "compiled").ms == pytest.approx(7 * ms_of(gelu(256)))


def test_runs_that_do_not_tell_are_left_out(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    latencies = Latencies(read_table(table))
    assert fit_overheads(RUNS[:2], latencies) == {}
    assert "eager runs are added up plainly: 2 runs determine 2 of three terms" in caplog.text
    assert fit_overheads([*RUNS, run(1, 77, 0)], latencies).keys() == {"eager"}
    assert "a run of 1 times is left out" in caplog.text


def test_the_interval_holds_for_models_that_were_left_out(table: Path) -> None:
    latencies = Latencies(read_table(table))
    wrong = [
        WholeRun(each.machine, each.model, each.plan, each.mode, each.operations, Latency(ms, ms, ms, 9))
        for each, off in zip([*RUNS, run(7, 1024, 9)], (1.1, 0.95, 1.05, 0.9, 1.2), strict=True)
        if (ms := off * each.latency.median_ms)
    ]
    overheads = fit_overheads(wrong, latencies)["eager"]
    assert 0.05 < overheads.error < 1
    for left_out in wrong:
        others = fit_overheads([each for each in wrong if each is not left_out], latencies)["eager"]
        off = others.apply(estimate(left_out.operations, latencies).ms, left_out.operations.launches)
        assert abs(math.log(off / left_out.latency.median_ms)) <= math.log1p(overheads.error) * 1.5
    asked = estimate(RUNS[0].operations, latencies, overheads)
    assert asked.low == pytest.approx(asked.ms / (1 + overheads.error))
    assert asked.high == pytest.approx(asked.ms * (1 + overheads.error))


def test_the_last_version_counts(table: Path) -> None:
    write(table, OTHER, ROWS, factor=2.0)
    costs = DeviceCosts.load(table)
    assert costs.machine == OTHER
    assert costs.latencies(ROWS[0]).ms == pytest.approx(2 * ms_of(ROWS[0]))


def test_a_predictor_is_taken_where_it_fits(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = Device(MACHINE.device, MACHINE.multiprocessors)
    fitted = Predictor.fit(ROWS, [3 * ms_of(each) for each in ROWS], device)  # to be told from one of the table
    unseen = gelu(300)
    assert stored_predictor(table) is None
    replace(fitted, fitted_to=digest(table)).save(predictor_path(table))
    answer = DeviceCosts.load(table).latencies(unseen)
    assert math.isclose(answer.ms, 3 * ms_of(unseen), rel_tol=0.2)
    with pytest.raises(UnknownLatency, match="no add float32 was measured"):
        DeviceCosts.load(table).latencies(Operation("add", "float32", 1, 1, 3, inputs=4))
    write(table, MACHINE, [gelu(5000)])
    assert math.isclose(DeviceCosts.load(table).latencies(unseen).ms, ms_of(unseen), rel_tol=0.2)
    assert "was fitted to another state" in caplog.text
    predictor_path(table).write_bytes(b"foreign")
    assert stored_predictor(table) is None
    assert "is left aside" in caplog.text


def test_too_few_rows_are_said_to_be_too_few(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", MACHINE, ROWS[:3])
    with pytest.raises(UnknownLatency, match="gelu float32: 3 rows"):
        DeviceCosts.load(tmp_path / "t.csv").latencies(gelu(5))
    with pytest.raises(UnknownLatency, match="there are too few measurements of gelu float32"):
        Latencies(read_table(tmp_path / "t.csv"))(gelu(5))


def test_no_rows_no_file(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", MACHINE, [])
    with pytest.raises(InputError, match="has no rows"):
        DeviceCosts.load(tmp_path / "t.csv")
    with pytest.raises(InputError, match="no latency table none"):
        find_table("none")


def test_shipped_tables_load_by_name() -> None:
    assert shipped_tables()
    for name, path in shipped_tables().items():
        assert find_table(name) == path
        assert DeviceCosts.load(path).machine.file_name == path.name
