"""What is said to Torch-TensorRT, by a stand-in with the parameters of the real functions; and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from jetvit.cost_model import Choice
from jetvit.passes.targets.tensorrt import compile_tensorrt, prepare, register, require_tensorrt, write_tensorrt
from jetvit.passes.targets.tensorrt.plugins import PLUGINS
from jetvit.patterns.errors import InputError
from tests.passes.plans import rewritten
from tests.passes.tensorrt_release import Release

PLAN = (Choice("window", window=(3, 4)), Choice("linear", feature_map="hedgehog"))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Release:
    release = Release()
    release.install(monkeypatch)
    return release


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)


class Two(nn.Module):
    """Two inputs, one of them by name, an option, and sizes that belong together."""

    def forward(self, x: Tensor, flip: bool, *, mask: Tensor) -> Tensor:
        return (x.flip(0) if flip else x) * mask


def two(**dims: Any) -> ExportedProgram:
    batch = Dim("batch", min=2, max=8)
    shapes = dims or {"x": {0: batch}, "flip": None, "mask": {0: batch}}
    args, kwargs = (torch.randn(4, 3), True), {"mask": torch.ones(4, 3)}
    return torch.export.export(Two(), args, kwargs, dynamic_shapes=shapes, strict=False)


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_prepared_program_is_compiled(library: Release) -> None:
    program, _ = rewritten("timm_vit_fused", PLAN)
    assert compile_tensorrt(program, optimization_level=5, min_block_size=3) is library.compiled
    (call,) = library.named("dynamo.compile")
    given = call.pop("exported_program")
    assert given.graph_module.code == prepare(program).graph_module.code
    (image,) = call.pop("arg_inputs")
    assert image.given == {"shape": (2, 3, 32, 48), "dtype": torch.float32, "name": "x"}
    assert call == {"kwarg_inputs": {}, "truncate_double": True, "min_block_size": 3, "optimization_level": 5}


def test_open_sizes_are_ranges(library: Release) -> None:
    compile_tensorrt(two())
    (call,) = library.named("dynamo.compile")
    shapes = {"min_shape": (2, 3), "opt_shape": (4, 3), "max_shape": (8, 3), "dtype": torch.float32}
    assert [each.given for each in call["arg_inputs"]] == [shapes | {"name": "x"}]
    assert {name: each.given for name, each in call["kwarg_inputs"].items()} == {"mask": shapes | {"name": "mask"}}


def test_sizes_that_follow_from_others(library: Release) -> None:
    rows = Dim("rows", min=2, max=6)
    program = torch.export.export(nn.Flatten(), (torch.randn(2, 16),), dynamic_shapes=({1: 8 * rows},))
    compile_tensorrt(program)
    (image,) = library.named("dynamo.compile")[0]["arg_inputs"]
    assert (image.given["min_shape"], image.given["opt_shape"], image.given["max_shape"]) == ((2, 16), (2, 16), (2, 48))


def test_a_largest_shape_where_there_is_no_bound(library: Release) -> None:
    program = two(x={0: Dim.DYNAMIC}, flip=None, mask={0: Dim.DYNAMIC})
    compile_tensorrt(program, max_shapes={"x": (16, 3), "mask": (16, 3)})
    (image,) = library.named("dynamo.compile")[0]["arg_inputs"]
    assert (image.given["min_shape"], image.given["opt_shape"], image.given["max_shape"]) == ((2, 3), (4, 3), (16, 3))


def test_a_file_is_written_whole(library: Release, tmp_path: Path) -> None:
    path = tmp_path / "fast.pt2"
    path.write_text("old")
    write_tensorrt(two(), path)
    assert path.read_text() == "an engine"
    assert [each.name for each in tmp_path.iterdir()] == ["fast.pt2"]
    (call,) = library.named("save")
    assert call.pop("module") is library.compiled
    assert Path(call.pop("file_path")).name == "fast.pt2"
    assert [each.given["name"] for each in call.pop("arg_inputs")] == ["x"]
    assert list(call.pop("kwarg_inputs")) == ["mask"]
    assert call == {"output_format": "exported_program", "retrace": False}  # `flip` cannot be given again


def test_a_program_of_tensors_alone_is_traced_again(library: Release, tmp_path: Path) -> None:
    program, _ = rewritten("timm_vit_fused", PLAN)
    write_tensorrt(program, tmp_path / "fast.pt2")
    assert library.named("save")[0]["retrace"] is True


def test_plugins_are_registered_before_it_compiles(library: Release) -> None:
    program, _ = rewritten("timm_vit_fused", PLAN)
    compile_tensorrt(program, plugins=True)
    names = [name for name, _ in library.calls]
    assert names == ["dynamo.conversion.plugins.custom_op", "dynamo.compile"]
    (plugin,) = library.named("dynamo.conversion.plugins.custom_op")
    assert plugin == {"op_name": "jetvit_tensorrt::window_attention", "supports_dynamic_shapes": True}
    assert len(register()) == len(PLUGINS) - 1  # all of them, for an engine that is loaded


def test_weights_go_to_the_gpu(library: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    from jetvit.passes.targets.tensorrt import compiler

    moved: list[str] = []
    program, _ = rewritten("timm_vit_fused", PLAN)
    monkeypatch.setattr(compiler, "move_to_device_pass", lambda given, device: moved.append(device) or given)
    assert compiler.on_gpu(program) is program
    assert moved == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    compiler.on_gpu(program)
    assert moved == ["cuda"]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_missing_library(missing: None, tmp_path: Path) -> None:
    for attempt in (
        require_tensorrt,
        register,
        lambda: write_tensorrt(two(), tmp_path / "a.pt2"),
        lambda: compile_tensorrt(two()),
    ):
        with pytest.raises(InputError, match=r"torch_tensorrt is not installed(.|\n)*pip install 'jetvit\[tensorrt\]'"):
            attempt()
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the real one where there is no driver: whatever it raises is the reason."""
    (tmp_path / "torch_tensorrt").mkdir()
    (tmp_path / "torch_tensorrt" / "__init__.py").write_text("raise RuntimeError('\\nno CUDA driver')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    with pytest.raises(InputError, match=r"cannot be loaded here\n  why: no CUDA driver"):
        require_tensorrt()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimisation_level": 5}, "no setting 'optimisation_level'\n.*'optimization_level'"),
        ({"max_shapes": {"image": (1, 3)}}, "no input 'image'\n.*x, flip, mask"),
        ({"max_shapes": {"x": (16,)}}, "has 1 axis\n.*has 2"),
        ({"max_shapes": {"x": (1, 3)}}, "axis 0 of x is at least 2\n.*1"),
    ],
)
def test_wrong_settings(library: Release, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compile_tensorrt(two(), **options)
    assert library.calls == []


def test_no_upper_bound(library: Release, tmp_path: Path) -> None:
    program = two(x={0: Dim.DYNAMIC}, flip=None, mask={0: Dim.DYNAMIC})
    with pytest.raises(InputError, match="axis 0 of x has no upper bound"):
        write_tensorrt(program, tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(library: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: Any, **__: Any) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(sys.modules["torch_tensorrt"], "save", save)
    path = tmp_path / "fast.pt2"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"):
        write_tensorrt(two(), path)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["fast.pt2"]
