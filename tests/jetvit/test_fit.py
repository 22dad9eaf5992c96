"""`jetvit fit`: the predictor beside a table, the same for the same table, and what is said of each kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from jetvit.cli import main
from jetvit.cost_model.measuring.measurement import Machine, Measurement
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.table import TableWriter
from jetvit.cost_model.measuring.timing import Latency
from jetvit.cost_model.predicting.device_costs import DeviceCosts, digest, stored_predictor
from tests.cost_model.tables import MACHINE, NOW, measurement


def gemm(rows: int, inputs: int, outputs: int) -> Operation:
    return Operation("gemm", "float32", 1, 1, rows, inputs=inputs, outputs=outputs)


def measured(operation: Operation, ms: float, machine: Machine = MACHINE) -> Measurement:
    return Measurement(machine, operation, Latency(ms, ms * 0.9, ms * 1.1, 20), "", NOW)


def products(machine: Machine = MACHINE) -> list[Measurement]:
    """Rows enough for an interval, of six families."""
    sizes = [(rows, inputs, outputs) for rows in (64, 256) for inputs in (64, 128, 256) for outputs in (64, 256)]
    return [measured(x, 0.01 + x.flops / 1e8, machine) for x in (gemm(*size) for size in sizes)]


def write(path: Path, rows: Sequence[Measurement]) -> Path:
    for row in rows:
        with TableWriter(path, row.machine) as writer:
            writer.append(row)
    return path


@pytest.fixture
def fit(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*argv: object) -> tuple[int, str, str]:
        status = main(["fit", *map(str, argv)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_a_predictor_beside_the_table(fit: Callable[..., tuple[int, str, str]], tmp_path: Path):
    table = write(tmp_path / "cpu.csv", [*products(), measurement(64), measurement(64)])
    status, out, _ = fit(table)
    assert status == 0
    first, head, add, product, last = out.splitlines()
    assert first == "Some CPU with 2 threads, torch 2.13.0: 14 rows"
    assert head.split() == ["kernel", "rows", "operations", "90", "%", "within", "held", "out"]
    assert add.split()[:4] == ["add", "float32", "2", "1"]
    assert "not predicted: 1 row, and an interval needs at least 10" in add
    assert product.split()[:5] == ["gemm", "float32", "12", "12", "factor"]
    assert product.endswith("families")
    assert last == f"wrote {tmp_path / 'cpu.npz'}"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cpu.csv", "cpu.npz"]
    predictor = stored_predictor(table)
    assert predictor is not None
    assert predictor.fitted_to == digest(table)
    assert DeviceCosts.load(table).latencies(gemm(100, 64, 64)).source == "predicted"


def test_the_same_table_gives_the_same_bytes(fit: Callable[..., tuple[int, str, str]], tmp_path: Path):
    table = write(tmp_path / "cpu.csv", products())
    files = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for file in files:
        assert fit(table, "-o", file)[0] == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    status, _, message = fit(table, "-o", files[0])
    assert (status, message.splitlines()[0]) == (1, f"error: {files[0]} exists already")
    assert fit(table, "-o", files[0], "--force")[0] == 0


def test_the_newest_version_of_the_machine_counts(fit: Callable[..., tuple[int, str, str]], tmp_path: Path):
    newer = replace(MACHINE, torch="2.14.0")
    table = write(tmp_path / "cpu.csv", [measurement(64), *products(newer)])
    status, out, _ = fit(table)
    assert status == 0
    assert out.startswith("Some CPU with 2 threads, torch 2.14.0: 12 rows\n")
    assert "add" not in out


def test_a_table_that_has_grown_is_fitted_anew(
    fit: Callable[..., tuple[int, str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    table = write(tmp_path / "cpu.csv", products())
    assert fit(table)[0] == 0
    write(table, [measured(gemm(512, 64, 64), 0.5)])
    assert stored_predictor(table) is None
    assert "was fitted to another state" in caplog.text
    assert fit(table)[0] == 0
    assert stored_predictor(table) is not None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no latency table"),
        ("", "line 1: no header of a latency table"),
        ("broken\n", "line 1: no header of a latency table"),
        ([], "has no rows"),
        ([measurement(64)], "no kernel of"),
    ],
)
def test_what_cannot_be_fitted_leaves_nothing(
    fit: Callable[..., tuple[int, str, str]], tmp_path: Path, content: str | list[Measurement] | None, words: str
):
    table = tmp_path / "cpu.csv"
    if isinstance(content, str):
        table.write_text(content)
    elif content is not None:
        TableWriter(table, MACHINE).close()
        write(table, content)
    status, out, err = fit(table)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in err
    assert not (tmp_path / "cpu.npz").exists()


def test_the_table_is_never_written_over(fit: Callable[..., tuple[int, str, str]], tmp_path: Path):
    table = write(tmp_path / "cpu.csv", products())
    before = table.read_bytes()
    status, _, err = fit(table, "-o", table)
    assert status == 1
    assert "is the table itself" in err
    assert table.read_bytes() == before
