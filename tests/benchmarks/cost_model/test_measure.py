"""The report on the cost model: what is held out is not learned from, and the figures are those of its rows."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cost_model import measure as cost_model
from benchmarks.cost_model.measure import Held, Rows, held_out, main, noise, summary
from jetvit.cost_model.measuring.measurement import Machine, Measurement
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.sweep import SMALL_MODELS, operations
from jetvit.cost_model.measuring.table import TableWriter, read_table
from jetvit.cost_model.measuring.timing import Latency
from jetvit.cost_model.predicting.roofline import Device

MACHINE = Machine("Test CPU", 2, "", "", "2.13.0", "3.9.0", "0.1.0")


def measurements() -> list[Measurement]:
    """A made-up device: a part for the call, one for arithmetic, one for memory, and a little noise."""
    draw = np.random.default_rng(0)
    found = operations(SMALL_MODELS, [(128, 192), (160, 160), (256, 256), (384, 512)], [1, 2], ["float32"], gpu=False)
    rows = []
    for operation in found:
        if operation.op in ("gemm", "gelu"):
            ms = (0.005 + operation.flops / 5e7 + operation.bytes / 1e7) * math.exp(0.01 * draw.standard_normal())
            rows.append(Measurement(MACHINE, operation, Latency(ms, ms * 0.98, ms * 1.02, 9), "", "2026-01-01T00:00Z"))
    return rows


@pytest.fixture(scope="module")
def rows() -> list[Measurement]:
    return measurements()


@pytest.fixture(scope="module")
def held(rows: list[Measurement]) -> list[Held]:
    return held_out(rows)


def test_every_row_is_held_out_once_in_range(rows: list[Measurement], held: list[Held]) -> None:
    in_range = [row[1] for row in held if row[0] == "in range"]
    assert sorted(map(str, in_range)) == sorted({str(row.operation.key) for row in rows})
    of_models = [str(row[1]) for row in held if row[0] == "model"]
    assert len(set(of_models)) == len(of_models)
    assert {row[0] for row in held} == {"in range", "family", "model", "2x"}
    assert all(row[5] for row in held if row[0] == "2x")
    assert all(math.isfinite(row[6]) == (row[0] == "family") for row in held)
    by_name = {(each["experiment"], each["op"]): each for each in summary(held)}
    assert by_name["in range", "all"]["mape_pct"] < 5
    assert by_name["in range", "all"]["test_rows"] == len(in_range)
    assert by_name["2x", "gemm"]["flagged_pct"] == 100
    assert 0 <= by_name["family", "all"]["coverage_pct"] <= 100


def test_what_is_held_out_is_not_learned_from(monkeypatch: pytest.MonkeyPatch, rows: list[Measurement]) -> None:
    seen: list[Operation] = []
    fit = cost_model.KernelModel.fit
    monkeypatch.setattr(cost_model.KernelModel, "fit", lambda known, *rest: seen.extend(known) or fit(known, *rest))
    products = {row.operation.key: row.latency.median_ms for row in rows if row.operation.op == "gemm"}
    table = Rows(products, Device("Test CPU", 2))
    test = np.arange(len(table.operations)) % 3 == 0
    asked = [row[1] for row in table.held_out("in range", test)]
    assert len(asked) == test.sum()
    assert not set(asked) & set(seen)
    assert set(asked) | set(seen) == set(products)


def test_too_few_rows_are_no_experiment() -> None:
    table = Rows({Operation("gelu", "float32", 1, 1, size, inputs=8): 1.0 for size in range(1, 9)}, Device("CPU", 2))
    assert list(table.held_out("in range", np.arange(8) == 0)) == []


def test_noise_is_half_of_what_lies_between_the_quartiles(rows: list[Measurement]) -> None:
    assert all(each["mape_pct"] == 2 for each in noise(rows))


@pytest.mark.slow
def test_figures_and_picture_are_written(
    tmp_path: Path, rows: list[Measurement], held: list[Held], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(cost_model, "held_out", lambda measurements: held)
    path = tmp_path / MACHINE.file_name
    with TableWriter(path, MACHINE) as writer:
        for row in rows:
            writer.append(row)
    assert len(read_table(path)) == len(rows)
    output = tmp_path / "cost_model.csv"
    assert main(["--table", str(path), "-o", str(output)]) == 0
    with output.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert {row["latencies_of"] for row in written} == {"Test CPU with 2 threads"}
    assert {row["table"] for row in written} == {MACHINE.file_name}
    assert all(row["table_rows"] == str(len(rows)) and row["table_sha256"] and row["date"] for row in written)
    assert output.with_suffix(".png").stat().st_size > 20_000
    assert "experiment in range  op all" in capsys.readouterr().out
