"""The comparison of runtimes: every runtime that is installed has a row, and the table shows both models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import jetvit
from benchmarks.report import runtimes_table
from benchmarks.results import RESULTS
from benchmarks.targets.measure import vit_tiny
from benchmarks.targets.runtimes import CHOICES, COLUMNS, FULL_BLOCKS, rows, two_full_blocks
from jetvit.models.torchvision_shim import ensure_torchvision


def timm_vit() -> nn.Module:
    ensure_torchvision()
    pytest.importorskip("timm")
    return vit_tiny(None)


def test_the_plan_keeps_two_full_blocks() -> None:
    sites = jetvit.find_attention(timm_vit(), torch.zeros(1, 3, 64, 96))
    plan = two_full_blocks(sites)
    kinds = [plan.choice_for(site.name) for site in sites]
    assert [index for index, choice in enumerate(kinds) if choice.kind == "full"] == list(FULL_BLOCKS)
    assert {choice.kind for choice in kinds} == {"full", *(choice.kind for choice in CHOICES)}


def test_the_table() -> None:
    row = {
        **dict.fromkeys(COLUMNS, ""),
        **{"runtime": "OpenVINO", "version": "2026.4.1", "original_ms": "1333.1", "rewritten_ms": "550.2"},
        **{"speedup": "2.42", "speedup_low": "2.31", "speedup_high": "2.5", "max_error": "3.0e-05"},
        **{"device": "a CPU", "threads": "1", "torch": "2.13.0", "date": "2026-11-30T10:00:00", "command": "python"},
    }
    table = runtimes_table([(RESULTS / "a-cpu" / "runtimes.csv", {**row, "rows": [row]})])
    assert "| OpenVINO 2026.4.1 | 1333 ms | 550 ms | **2.42×** (2.31–2.50) | 3.0e-05 |" in table


@pytest.mark.slow
def test_every_runtime_runs_both_models(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    found = rows(timm_vit(), tmp_path, (64, 96), rounds=5)
    assert [row["runtime"] for row in found][:2] == ["torch.compile", "ONNX Runtime"]
    for row in found:
        assert set(row) <= set(COLUMNS)
        assert float(row["max_error"]) < 1e-3
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
