"""Results that come from another machine: where they go, what they are merged with, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.archive import write_archive
from benchmarks.gpu.install import install
from jetvit.cost_model.measuring.table import TableWriter, read_table
from jetvit.cost_model.predicting.device_costs import predictor_path
from tests.cost_model.tables import GPU, measurement

MACHINE = replace(GPU, device="NVIDIA H200")
RUN = {"device": "NVIDIA H200", "run": "2026-11-30T10:00:00+00:00", "dry": "False", "state": ""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "tuned").mkdir(parents=True)
    (folder / "machine.jsonl").write_text(json.dumps(RUN) + "\n")
    (folder / "kernels.csv").write_text("a,b\n1,2\n")
    (folder / "tuned" / "nvidia-h200-torch-2.11.0.json").write_text("{}")
    return folder


def run(source: Path, tmp_path: Path) -> int:
    return install(source, tmp_path / "results", tmp_path / "data")


def place(tmp_path: Path) -> Path:
    return tmp_path / "results" / "nvidia-h200" / "2026-11-30"


def test_an_archive_goes_to_the_folder_of_its_device_and_date(folder: Path, tmp_path: Path, capsys) -> None:
    write_archive(folder, tmp_path / "a.tar.gz")
    for source in (tmp_path / "a.tar.gz", folder):
        assert run(source, tmp_path) == 0
        assert (place(tmp_path) / "kernels.csv").read_text() == "a,b\n1,2\n"
        assert (place(tmp_path) / "tuned" / "nvidia-h200-torch-2.11.0.json").exists()
    said = capsys.readouterr().out
    assert "no latency table yet" in said
    assert "make report" in said
    assert run(place(tmp_path), tmp_path) == 0  # what was measured where it belongs


def test_lines_are_added_and_none_is_lost_or_doubled(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path)
    later = {**RUN, "run": "2026-11-30T11:00:00+00:00"}
    (folder / "machine.jsonl").write_text(json.dumps(RUN) + "\n" + json.dumps(later) + "\n")
    (folder / "kernels.csv").write_text("a,b\n3,4\n1,2\n")
    (folder / "report.md").write_text("new")
    (folder / "caches").mkdir()
    (folder / "caches" / "a.done").touch()
    assert run(folder, tmp_path) == 0
    assert (place(tmp_path) / "kernels.csv").read_text() == "a,b\n1,2\n3,4\n"
    assert len((place(tmp_path) / "machine.jsonl").read_text().splitlines()) == 2
    assert (place(tmp_path) / "report.md").read_text() == "new"
    assert not (place(tmp_path) / "caches").exists()


@pytest.mark.slow
def test_the_latency_table_goes_to_the_cost_model_and_gets_a_predictor(folder: Path, tmp_path: Path, capfd) -> None:
    with TableWriter(folder / MACHINE.file_name, MACHINE) as writer:
        for number in range(60):
            writer.append(measurement(64 * (number + 1), 1e-3 * (number + 1), MACHINE))
    assert run(folder, tmp_path) == 0
    table = tmp_path / "data" / "nvidia-h200.csv"
    assert len(read_table(table)) == 60
    assert predictor_path(table).exists()
    assert "make report" in capfd.readouterr().out


def test_a_damaged_latency_table_does_not_replace_another(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "nvidia-h200.csv").write_text("the table before")
    (folder / "nvidia-h200.csv").write_text("no table\n")
    assert run(folder, tmp_path) == 1
    assert "nvidia-h200.csv" in capsys.readouterr().err
    assert (tmp_path / "data" / "nvidia-h200.csv").read_text() == "the table before"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dry": "True"}, "dry, or of several devices"),
        ({"device": "NVIDIA H100"}, "dry, or of several devices"),
        ({"dry": None}, "dry, or of several devices"),
    ],
)
def test_what_is_no_campaign_on_one_gpu_is_refused(folder: Path, tmp_path: Path, capsys, change, message) -> None:
    with (folder / "machine.jsonl").open("a") as file:
        file.write(json.dumps({**RUN, **change}) + "\n")
    assert run(folder, tmp_path) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("content", [None, "{", '{"device": "NVIDIA H200"}\n', "3\n"])
def test_a_damaged_journal_is_named(folder: Path, tmp_path: Path, capsys, content: str | None) -> None:
    (folder / "machine.jsonl").unlink()
    if content is not None:
        (folder / "machine.jsonl").write_text(content)
    assert run(folder, tmp_path) == 1
    assert "machine.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_what_is_no_archive_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"no archive")
    for name in ("a.tar.gz", "absent.tar.gz"):
        assert run(tmp_path / name, tmp_path) == 1
        assert f"cannot install {tmp_path / name}" in capsys.readouterr().err


def test_a_table_of_other_columns_is_not_merged(folder: Path, tmp_path: Path, capsys) -> None:
    run(folder, tmp_path)
    (folder / "kernels.csv").write_text("a,c\n1,2\n")
    assert run(folder, tmp_path) == 1
    assert "other columns" in capsys.readouterr().err
