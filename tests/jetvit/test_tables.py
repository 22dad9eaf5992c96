"""The table that a command takes by itself, and one that it is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import jetvit
from jetvit.commands import tables
from jetvit.cost_model.measuring.measurement import this_machine
from jetvit.cost_model.measuring.table import TableWriter
from jetvit.patterns.errors import InputError
from tests.cost_model.tables import MACHINE, measurement

CPU = torch.device("cpu")


def test_the_table_of_this_device_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "shipped_tables", dict)
    assert tables.table_of(CPU) is None
    older = replace(this_machine(CPU, jetvit.__version__), torch="2.0.0")
    path = tmp_path / older.file_name
    with TableWriter(path, older) as writer:
        writer.append(measurement(64, machine=older))
    monkeypatch.setattr(tables, "shipped_tables", lambda: {path.stem: path})
    assert tables.table_of(CPU) is None  # it has no predictor
    monkeypatch.setattr(tables, "stored_predictor", lambda path: object())
    costs = tables.table_of(CPU)
    assert costs is not None
    assert costs.machine == older


def test_no_table_and_no_predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(InputError, match="no latency table none"):
        tables.load_table("none")
    (tmp_path / "t.csv").write_text("rows")
    with pytest.raises(InputError, match="no header of a latency table"):
        tables.load_table(str(tmp_path / "t.csv"))
    assert capsys.readouterr().err == ""
    with TableWriter(tmp_path / "u.csv", MACHINE) as writer:
        writer.append(measurement(1))
    monkeypatch.setattr(tables.DeviceCosts, "load", lambda path: path)
    tables.load_table(str(tmp_path / "u.csv"))
    assert "`jetvit fit` keeps it" in capsys.readouterr().err
