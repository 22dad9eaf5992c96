"""The programs behind the tables of the whole search: what they share, what they say, and a tiny run."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from benchmarks import parity, search_camvid, search_nyuv2
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.cost_model.plans.fingerprint import SiteShape

NAMES = ("blocks.0.attn", "blocks.1.attn", "blocks.2.attn")


@pytest.mark.parametrize("program", [search_camvid, search_nyuv2])
def test_without_data_it_says_so(program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("JETVIT_DATA", raising=False)
    program.main([])
    assert "not measured: give --data DIR" in capsys.readouterr().out


def test_a_search_begins_with_the_stages_of_another(tmp_path: Path):
    source, target = tmp_path / "full-2", tmp_path / "full-0"
    source.mkdir()
    for name in ("local_distillation", "supernet_distillation", "control", "task", "distillation"):
        (source / f"{name}.safetensors").write_text(name)
    (source / "latencies.json").write_text("{}")
    (source / "evaluations.jsonl").write_text("")
    (source / "run.json").write_text(json.dumps({"seed": 0, "max_full": 2}))
    parity._share(source, target, 0)
    assert json.loads((target / "run.json").read_text()) == {"seed": 0, "max_full": 0}
    # What depends on the path that was found is done anew.
    assert not (target / "task.safetensors").exists()
    assert not (target / "distillation.safetensors").exists()
    assert (target / "control.safetensors").read_text() == "control"
    (target / "run.json").write_text("kept")
    parity._share(source, target, 0)
    assert (target / "run.json").read_text() == "kept"


def test_the_rows_are_those_of_the_record():
    choices = (Choice("window", window=(8, 8)), Choice("full"), Choice("linear", conv_size=3))
    shapes = tuple(SiteShape(name, 3, 64, {"packed": (576, 192), "out": (192, 192)}, 1, 0, None) for name in NAMES)
    found = {"miou": 0.5, "interval": [0.4, 0.6], "feature_error": 0.1, "agreement": 0.9}
    test = {
        "metric": "miou", "original": {**found, "miou": 0.6}, "control": {**found, "miou": 0.7}, "plan": found,
        "plan_minus_control": [-0.2, -0.3, -0.1], "non_inferior_to_control": False, "margin": 0.005, "bootstrap_run": 1,
    }  # fmt: skip
    weightless = tuple(SitePlan(name, choice) for name, choice in zip(NAMES, choices, strict=True))
    plan = Plan(
        weightless,
        Fingerprint(shapes),
        provenance={"test": test, "full_sites": 1, "estimated_plan_ms": 2.0, "estimated_full_ms": 3.0},
    )
    original, control, hybrid = parity._rows_of(plan, parity.FULL_BLOCKS[0], {})
    assert (original["value"], control["value"], hybrid["value"]) == (0.6, 0.7, 0.5)
    assert (original["full_blocks"], hybrid["full_blocks"]) == (3, 1)
    assert hybrid["attention"] == "W F L"
    assert (hybrid["minus_control"], hybrid["non_inferior"]) == (-0.2, False)
    assert control["minus_control"] is None
    assert (original["estimated_ms"], hybrid["estimated_ms"]) == (3.0, 2.0)
    (alone,) = parity._rows_of(plan, 0, {})
    assert alone["model"] == "hybrid, 1 full"


@pytest.mark.slow
@pytest.mark.skipif("JETVIT_DATA" not in os.environ, reason="needs weights and images: set JETVIT_DATA")
def test_a_tiny_run_can_be_started_again(tmp_path: Path):
    argv = ["--scale", "0.01", "--limit", "6", "--folder", str(tmp_path / "run"), "-o", str(tmp_path / "rows.csv")]
    tables = []
    for _ in range(2):
        search_nyuv2.main(argv)
        with (tmp_path / "rows.csv").open(newline="") as file:
            tables.append([{key: row[key] for key in ("model", "value", "attention")} for row in csv.DictReader(file)])
    assert tables[0] == tables[1]
    assert [row["model"].partition(",")[0] for row in tables[0]] == ["original", "control", "hybrid", "hybrid"]
