"""The benchmark of the latency model: what it merges, leaves out and writes, and a loose bound on the real table."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cost_model import gemm as cost_model_gemm
from benchmarks.cost_model.gemm import COLUMNS, DEVICE, PROVENANCE, main, read_table, summary
from jetvit.cost_model.predicting import trees
from jetvit.cost_model.predicting.kernel_model import KernelModel

LAYERS = {"a": [(64, 64), (128, 64)], "b": [(128, 64), (256, 128)], "c": [(512, 128), (64, 256)]}


def write_table(path: Path) -> Path:
    """Three models of two layers each, of which "a" and "b" share one."""
    rng = np.random.default_rng(0)
    lines = ["m,n,k,model,median_ms,repeats"]
    for model, layers in LAYERS.items():
        for n, k in layers:
            for m in range(16, 1024, 48):
                ms = (0.01 + math.ceil(m / 128) * n * k * 1e-5) * math.exp(rng.normal(0, 0.02))
                lines.append(f"{m},{n},{k},{model},{ms:.6f},1")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(cost_model_gemm, "CURVE", (30,))
    monkeypatch.setattr(cost_model_gemm, "SEEDS", 1)
    monkeypatch.setattr(trees, "_SETTINGS", {**trees._SETTINGS, "max_iter": 40})
    monkeypatch.setattr(cost_model_gemm, "LEFT_OUT_ROWS", 40)
    monkeypatch.setattr(cost_model_gemm, "FAMILY_FOLDS", 2)
    return write_table(tmp_path / "table.csv")


def test_equal_calls_are_one_row_with_all_their_models(tmp_path: Path):
    table = read_table(write_table(tmp_path / "table.csv"))
    assert len(table.operations) == len(set(table.operations)) == 5 * 21
    shared = [models for x, models in zip(table.operations, table.models, strict=True) if x.outputs == 128]
    assert set(shared) == {frozenset("ab")}
    assert {(x.outputs, x.inputs) for x in table.operations} == {layer for own in LAYERS.values() for layer in own}
    assert {x.rows for x in table.operations} == set(range(16, 1024, 48))


def test_a_merged_row_has_the_median(tmp_path: Path):
    path = tmp_path / "table.csv"
    path.write_text("m,n,k,model,median_ms,repeats\n1,2,3,a,1.0,1\n1,2,3,b,3.0,1\n1,2,3,b,2.0,1\n", encoding="utf-8")
    assert np.exp(read_table(path).log_ms).tolist() == pytest.approx([2.0])


@pytest.mark.parametrize(
    ("text", "reason"), [("m,n,k,model\n", "no column median_ms"), ("m,n,k,model,median_ms\n", "no rows")]
)
def test_another_table_is_refused(tmp_path: Path, text: str, reason: str):
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=reason):
        read_table(tmp_path / "table.csv")


def test_no_data_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("JETVIT_DATA", raising=False)
    with pytest.raises(SystemExit):
        main([])
    assert "JETVIT_DATA" in capsys.readouterr().err


def test_every_experiment_is_written_with_its_provenance(small: Path, tmp_path: Path):
    output = tmp_path / "results" / "figures.csv"
    main(["--data", str(small), "-o", str(output)])
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*COLUMNS, *PROVENANCE]
    assert {row["experiment"] for row in rows} == {"curve", "extrapolation", "families", "models"}
    for row in rows:
        assert float(row["mape_pct"]) >= 0
        assert all(row[name] for name in PROVENANCE)
    model = {row["experiment"]: row for row in rows if row["method"] == "model"}
    assert float(model["extrapolation"]["flagged_pct"]) == 100
    assert float(model["families"]["width_pct"]) > 0
    # Without "c" and another only one layer is left, which is too few to learn from; without "a" and "b" two are.
    assert (model["models"]["splits"], model["models"]["test_rows"]) == ("1", str(3 * 21))
    assert str(tmp_path) not in output.read_text(encoding="utf-8").replace(str(output), "")


def test_left_out_families_are_not_learned_from(small: Path, monkeypatch: pytest.MonkeyPatch):
    learned = []
    fit = KernelModel.fit.__func__

    def spy(cls, operations, *args, **kwargs):
        learned.append({x.family for x in operations})
        return fit(cls, operations, *args, **kwargs)

    monkeypatch.setattr(KernelModel, "fit", classmethod(spy))
    table = read_table(small)
    out = {table.operations[0].family}
    list(cost_model_gemm._left_out(table, "families", out, both=True))
    assert learned
    assert not any(families & out for families in learned)


def test_the_summary_means_splits_and_keeps_the_worst_coverage():
    row = {"experiment": "families", "method": "model", "train_rows": 4, "test_rows": 2, "mape_pct": 1.0}
    rows = [{**row, "coverage_worst_pct": 90.0}, {**row, "mape_pct": 3.0, "coverage_worst_pct": 80.0}]
    (found,) = summary(rows)
    assert (found["mape_pct"], found["coverage_worst_pct"], found["splits"]) == ("2.00", "80.00", 2)


def test_the_real_table_is_learned_from_few_rows():
    folder = os.environ.get("JETVIT_DATA")
    if not folder:
        pytest.skip("JETVIT_DATA names no folder with h100_gemm_bf16.csv")
    table = read_table(Path(folder) / "h100_gemm_bf16.csv")
    order = np.random.default_rng(7).permutation(len(table.log_ms))
    train, test = order[:300], order[300:800]
    model = KernelModel.fit(table.pick(train), table.log_ms[train], DEVICE)
    figures = cost_model_gemm.errors(model.log_ms(table.pick(test)), table.log_ms[test])
    assert figures["mape_pct"] < 9
    assert figures["spearman"] > 0.99
