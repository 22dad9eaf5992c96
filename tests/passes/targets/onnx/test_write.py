"""ONNX models as files: whole or not at all, and weights beside the file that are found by its final name."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jetvit.passes.targets.onnx import onnx_model, write_onnx
from jetvit.patterns.errors import InputError, RewriteError

ir = pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

X = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


@cache
def exported(seed: int = 0) -> tuple[nn.Module, Any]:
    torch.manual_seed(seed)
    model = nn.Linear(64, 64).eval()
    return model, onnx_model(torch.export.export(model, (X,)))


def run(path: Path) -> Any:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input": X.numpy()})[0]


def assert_is_model(path: Path, seed: int = 0) -> None:
    np.testing.assert_allclose(run(path), exported(seed)[0](X).numpy(), rtol=1e-4, atol=1e-5)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_one_file(tmp_path: Path) -> None:
    assert write_onnx(exported()[1], tmp_path / "model.onnx") == (tmp_path / "model.onnx",)
    assert names(tmp_path) == ["model.onnx"]
    assert_is_model(tmp_path / "model.onnx")
    loaded = onnx.load(tmp_path / "model.onnx")
    assert loaded.producer_name == "jetvit"


def test_weights_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert write_onnx(exported()[1], path, external_above=1000) == (path, tmp_path / "model.onnx.data")
    assert names(tmp_path) == ["model.onnx", "model.onnx.data"]
    entries = {
        e.key: e.value for t in onnx.load(path, load_external_data=False).graph.initializer for e in t.external_data
    }
    assert entries["location"] == "model.onnx.data"
    assert path.stat().st_size < 64 * 64 * 4 < (tmp_path / "model.onnx.data").stat().st_size + 1
    assert_is_model(path)


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    """It can be written again, and from a folder that is gone."""
    model = exported()[1]
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_onnx(model, folder / "model.onnx", external_above=0)
        assert_is_model(folder / "model.onnx")


@pytest.mark.parametrize("external_above", [0, 10**9])
def test_what_is_there_is_replaced(tmp_path: Path, external_above: int) -> None:
    write_onnx(exported(0)[1], tmp_path / "model.onnx", external_above=external_above)
    write_onnx(exported(1)[1], tmp_path / "model.onnx", external_above=external_above)
    assert_is_model(tmp_path / "model.onnx", seed=1)


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    link = tmp_path / "model.onnx"
    link.symlink_to(tmp_path / "store" / "v1.onnx")
    written = write_onnx(exported()[1], link, external_above=0)
    assert [each.name for each in written] == ["v1.onnx", "v1.onnx.data"]
    assert link.is_symlink()
    assert_is_model(tmp_path / "store" / "v1.onnx")


@pytest.mark.parametrize("failing", ["model.onnx", "model.onnx.data"])
def test_a_failure_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(exported(0)[1], path, external_above=0)
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if self.name == failing and self.parent != tmp_path:
            raise OSError("disk full")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_onnx(exported(1)[1], path, external_above=0)
    assert names(tmp_path) == ["model.onnx", "model.onnx.data"]
    assert_is_model(path, seed=0)


@pytest.mark.parametrize("external_above", [0, 10**9])
def test_an_invalid_model_is_not_written(tmp_path: Path, external_above: int) -> None:
    model = ir.from_proto(ir.to_proto(exported()[1]))
    next(iter(model.graph)).op_type = "NoSuchOperator"
    with pytest.raises(RewriteError, match=r"not valid[\s\S]*NoSuchOperator"):
        write_onnx(model, tmp_path / "model.onnx", external_above=external_above)
    assert names(tmp_path) == []


def test_wrong_shapes_are_found(tmp_path: Path) -> None:
    model = ir.from_proto(ir.to_proto(exported()[1]))
    model.graph.outputs[0].shape = ir.Shape([2, 65])
    with pytest.raises(RewriteError, match="not valid"):
        write_onnx(model, tmp_path / "model.onnx")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match=r"cannot write[\s\S]*no regular file"):
        write_onnx(exported()[1], tmp_path / "folder.onnx")
    with pytest.raises(InputError, match=r"cannot write[\s\S]*No such file"):
        write_onnx(exported()[1], tmp_path / "missing" / "model.onnx")
