"""torchvision is imported as it stands; operators are declared only where its extension did not bring them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Stand-ins for torchvision's package, each a release of its own: how its extension brings the operators differs.
EXTENSION_UNDER_A_NEW_NAME = """
import torch
# What `_C_stable.so` does when it is loaded; a second definition of an operator ends the process there.
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.library.register_fake("torchvision::nms")(lambda dets, scores, threshold: dets)
"""
EXTENSION_THAT_DOES_NOT_LOAD = """
import torch
from . import extension
from tests.zoo.quick import sweep
torch.library.register_fake("torchvision::nms")(lambda dets, scores, threshold: dets)
"""
BROKEN_OTHERWISE = """
raise ImportError("a picture library is missing")
"""


def run(tmp_path: Path, package: str, code: str) -> subprocess.CompletedProcess:
    folder = tmp_path / "torchvision"
    folder.mkdir()
    (folder / "__init__.py").write_text(package)
    (folder / "extension.py").write_text("")
    code = f"from jetvit.models.torchvision_shim import ensure_torchvision\nensure_torchvision()\n{code}"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )


@pytest.mark.parametrize(
    "package",
    [
        pytest.param(EXTENSION_UNDER_A_NEW_NAME, marks=pytest.mark.slow),
        EXTENSION_THAT_DOES_NOT_LOAD,
    ],
)
def test_torchvision_can_be_imported_afterwards(tmp_path, package) -> None:
    """`timm:` models aborted where torchvision names its extension otherwise: its operators were declared twice."""
    code = "import torch, torchvision; ensure_torchvision(); print(torch.ops.torchvision.nms.default._schema)"
    result = run(tmp_path, package, code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("torchvision::nms(Tensor dets")


def test_another_failure_is_left_to_who_needs_torchvision(tmp_path) -> None:
    code = "import torch; print(hasattr(torch.ops.torchvision, 'nms'), flush=True); import torchvision"
    result = run(tmp_path, BROKEN_OTHERWISE, code)
    assert result.stdout == "False\n"
    assert result.stderr.endswith("ImportError: a picture library is missing\n")
