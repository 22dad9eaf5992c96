"""The prepared program, run by another runtime: what is handed to TensorRT is standard, and means what it meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from jetvit.cost_model import Choice
from jetvit.passes.frontends.differences import tensors
from jetvit.passes.targets.plain_outputs import plain_program
from jetvit.passes.targets.tensorrt import prepare
from tests.passes.plans import MIXED, rewritten
from tests.zoo import CASES
from tests.zoo.quick import sweep

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
OPEN = (Choice("window", window=(3, 4)), Choice("linear", conv_size=3))


def session_of(program: ExportedProgram, folder: Path) -> Any:
    path = folder / "twin.onnx"
    torch.onnx.export(program, dynamo=True, f=str(path), verbose=False, opset_version=20)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(session: Any, inputs: Any) -> list[Tensor]:
    values = [each.numpy() for each in tensors(inputs)]
    names = [each.name for each in session.get_inputs()]
    return [torch.from_numpy(each) for each in session.run(None, dict(zip(names, values, strict=True)))]


def expected(program: ExportedProgram, inputs: Any) -> list[Tensor]:
    return tensors(program.module()(*inputs[0], **inputs[1]))


@pytest.mark.parametrize(
    "name", sweep(["timm_vit_fused", "hf_dinov3_sdpa", "hf_depth_anything_sdpa"], quick=["hf_dinov3_sdpa"])
)
def test_the_twin_computes_the_same(name: str, tmp_path: Path) -> None:
    program, inputs = rewritten(name, MIXED)
    session = session_of(plain_program(prepare(program)), tmp_path)
    torch.testing.assert_close(run(session, inputs), expected(program, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("hf_dinov3_sdpa", [(2, (32, 48)), (3, (72, 40)), (2, (56, 56))]),
        ("timm_vit_unfused", [(2, (32, 48)), (3, (48, 24)), (2, (72, 64))]),
    ],
)
def test_at_open_sizes(name: str, calls: list[tuple[int, tuple[int, int]]], tmp_path: Path) -> None:
    program, _ = rewritten(name, OPEN, dynamic=True)
    session = session_of(plain_program(prepare(program)), tmp_path)
    for batch, size in calls:
        inputs = CASES[name].inputs(batch=batch, size=size)
        torch.testing.assert_close(run(session, inputs), expected(program, inputs), rtol=1e-4, atol=1e-4)
