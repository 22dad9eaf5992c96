"""Files that were written on other releases of torch and transformers are read, and mean the same.

`tests/data/releases` holds one folder for each set of releases, made by `tests/release_files.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import jetvit
from jetvit.cost_model import Plan
from jetvit.cost_model.measuring.table import read_table
from jetvit.files import load_exported
from jetvit.models.torchvision_shim import ensure_torchvision
from tests.cost_model.tables import measurement
from tests.release_files import write
from tests.zoo.quick import sweep

FOLDERS = sorted((Path(__file__).parent / "data" / "releases").iterdir())


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def expected(folder: Path) -> tuple[Tensor, Tensor]:
    """An image, and what the rewritten model made of it."""
    tensors = load_file(folder / "expected.safetensors")
    return tensors["image"], tensors["output"]


def load_model(folder: Path) -> nn.Module:
    """The model as this release of transformers reads it: its parameters may have other names than in the file."""
    ensure_torchvision()
    transformers = pytest.importorskip("transformers")
    model, seen = transformers.Dinov2Model.from_pretrained(folder / "model", output_loading_info=True)
    assert not seen["missing_keys"]
    return model.eval()


@pytest.mark.parametrize("road", sweep(["optimize", "compile"], quick=["optimize"]))
def test_a_plan_with_weights_is_applied(folder: Path, expected: tuple[Tensor, Tensor], road: str) -> None:
    """Also where this release has other names for the attentions, and for their projections."""
    image, output = expected
    model, plan = load_model(folder), Plan.load(folder / "plan")
    if road == "optimize":
        rewritten = jetvit.optimize(model, image, plan=plan)
    else:
        rewritten = torch.compile(model, backend="jetvit", options={"plan": plan, "inner": "eager"})
    with torch.no_grad():
        found = rewritten(image).last_hidden_state
        original = model(image).last_hidden_state
    torch.testing.assert_close(found, output, rtol=1e-4, atol=1e-5)
    assert (found - original).abs().max() > 0.1


def test_a_program_is_run(folder: Path, expected: tuple[Tensor, Tensor]) -> None:
    image, output = expected
    program = load_exported(folder / "model.pt2")
    torch.testing.assert_close(program.module()(image)["last_hidden_state"], output, rtol=1e-4, atol=1e-5)
    again = jetvit.optimize(program)  # and it can be rewritten, by exact passes here
    torch.testing.assert_close(again.module()(image)["last_hidden_state"], output, rtol=1e-4, atol=1e-5)


def test_a_table_is_read(folder: Path) -> None:
    assert read_table(folder / "table.csv") == [measurement(width) for width in range(1, 4)]


def test_they_are_what_is_written_here(tmp_path: Path) -> None:
    """The program that made them still runs, and makes files of the same names."""
    pytest.importorskip("transformers")
    write(tmp_path / "new")
    names = [{str(file.relative_to(folder)) for file in folder.rglob("*")} for folder in (*FOLDERS, tmp_path / "new")]
    assert all(each == names[0] for each in names)
