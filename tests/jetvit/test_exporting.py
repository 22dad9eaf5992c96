"""`jetvit.export`: what is written computes what the rewritten program does, or nothing is written."""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import jetvit
from jetvit import export_targets
from jetvit.export_targets import TARGETS
from jetvit.exporting import ExportJob
from jetvit.files import load_exported
from jetvit.patterns import CaptureError, InputError, PlanError, RewriteError
from tests.passes.models import LINEAR, WINDOW, assert_close, exported, plan_of, planned
from tests.zoo import CASES
from tests.zoo.case import images
from tests.zoo.handwritten import SIZE
from tests.zoo.quick import sweep

IMAGE = images(2, 3, *SIZE)


@pytest.fixture(autouse=True)
def _inference(frozen_imports: None) -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=["pt2", pytest.param("onnx", marks=pytest.mark.slow)])
def target(request: pytest.FixtureRequest) -> str:
    if request.param == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    return request.param


def run(path: Path, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> list[Tensor]:
    """The outputs of a written file."""
    kind = "onnx" if path.suffix == ".onnx" else "pt2"
    _, _, program = exported("sdpa")
    reader = export_targets.READERS[kind](path, program)
    assert callable(reader)
    return reader(args, kwargs or {})


def place(target: str, folder: Path, name: str = "model") -> Path:
    return folder / f"{name}{TARGETS[target].suffix}"


# --- what may be exported ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "with_plan", [pytest.param(False, id="exact", marks=pytest.mark.slow), pytest.param(True, id="plan")]
)
def test_a_module_a_program_and_what_was_optimized(target: str, with_plan: bool, tmp_path: Path) -> None:
    model, inputs, program = exported("sdpa")
    plan = plan_of(jetvit.find_attention(program)) if with_plan else None
    expected = planned(program, inputs, plan) if plan is not None else model(*inputs[0])
    optimized = jetvit.optimize(model, *inputs[0], plan=plan)
    given: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "module": (model, inputs[0]),
        "program": (program, ()),
        "optimized_module": (optimized, ()),
        "optimized_program": (jetvit.optimize(program, plan=plan), ()),
    }
    for name, (each, args) in given.items():
        path = place(target, tmp_path, name)
        # The plan is applied now, was applied before, or both: one function.
        assert jetvit.export(each, *args, plan=plan, target=target, path=str(path)) == path
        assert_close(run(path, inputs[0]), [expected])
    assert len(list(tmp_path.iterdir())) == len(given)


def test_open_sizes_stay_open(target: str, tmp_path: Path) -> None:
    case = CASES["separate_unfused"]
    model, (args, _) = case.build(), case.inputs()
    plan = plan_of(jetvit.find_attention(model, *args))
    plan.save(tmp_path / "plan")
    path, shapes = place(target, tmp_path), case.dynamic_shapes(args, {})
    jetvit.export(model, *args, plan=tmp_path / "plan", target=target, path=path, dynamic_shapes=shapes)
    for batch, size in ((3, (48, 24)), (1, (32, 48))):
        inputs = case.inputs(batch=batch, size=size)
        assert_close(run(path, inputs[0]), [planned(model, inputs, plan)])


def test_dynamic_opens_batch_height_and_width(tmp_path: Path) -> None:
    case = CASES["separate_unfused"]
    model, (args, _) = case.build(), case.inputs(batch=1)
    path = jetvit.export(model, *args, path=tmp_path / "model.pt2", dynamic=True)
    for batch, size in ((1, case.size), (3, (48, 24))):
        inputs, _ = case.inputs(batch=batch, size=size)
        assert_close(run(path, inputs), [model(*inputs)])


@pytest.mark.parametrize("name", sweep(["dict_to_dataclass", "hf_dinov2_eager"], quick=["dict_to_dataclass"]))
def test_dataclasses_become_dicts(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, (args, kwargs) = case.build(), case.inputs()
    fields = vars(model(*args, **kwargs)) if name == "dict_to_dataclass" else dict(model(*args, **kwargs))
    program = torch.export.export(model, args, kwargs, strict=False)
    optimized = jetvit.optimize(model, *args, kwargs=kwargs)
    for each in (model, program, optimized):
        path = jetvit.export(each, *args, kwargs=kwargs, path=tmp_path / "model.pt2")
        found = load_exported(path).module()(*args, **kwargs)
        assert type(found) is dict
        assert_close(found, {key: value for key, value in fields.items() if value is not None})
    assert type(optimized(*args, **kwargs)) is type(model(*args, **kwargs))


class Counts(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = CASES["sdpa"].build()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        return self.model(image)


def test_the_model_is_not_touched(tmp_path: Path) -> None:
    model = Counts().eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    jetvit.export(model, IMAGE, path=tmp_path / "model.pt2")
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert "forward" not in vars(model)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what", "do"),
    [
        ({"target": "onxx", "path": "m.onnx"}, "there is no target 'onxx'", "did you mean 'onnx'?"),
        ({"target": "zzz", "path": "m.onnx"}, "there is no target 'zzz'", "choose one of pt2, aoti, onnx, tensorrt"),
        ({"path": "m.onnx"}, "cannot write m.onnx", "name it m.pt2, or choose the target 'onnx'"),
        ({"target": "aoti", "path": "m.so"}, "cannot write m.so", "name it m.pt2"),
        ({"target": "onnx", "path": "m"}, "cannot write m", "name it m.onnx"),
        ({"target": "aoti", "path": "m.pt2", "opset": 18}, "the target 'aoti' takes no option 'opset'", "leave it out"),
        ({"path": "m.pt2", "custom_ops": True}, "the target 'pt2' takes no option 'custom_ops'", "leave it out"),
        ({"target": "onnx", "path": "m.onnx", "plugins": True}, "the target 'onnx' takes no option 'plugins'", ""),
        ({"path": "m.pt2", "functions": True}, "the target 'pt2' takes no option 'functions'", "leave it out"),
        (
            {"target": "onnx", "path": "m.onnx", "functions": True, "custom_ops": True},
            "custom_ops and functions exclude each other",
            "leave one of them out",
        ),
        ({"path": "m.pt2", "max_shapes": {"x": (8, 3)}}, "the target 'pt2' takes no option 'max_shapes'", ""),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], what: str, do: str) -> None:
    with pytest.raises(InputError) as refusal:
        jetvit.export(nn.Identity(), **options)  # before anything is done with the model
    assert refusal.value.what == what
    assert refusal.value.do.startswith(do)


@pytest.mark.parametrize(
    ("target", "package", "install"),
    [
        ("onnx", "onnxscript", "pip install 'jetvit[onnx]'"),
        ("tensorrt", "torch_tensorrt", "pip install 'jetvit[tensor"),
    ],
)
def test_a_package_that_is_missing(
    target: str, package: str, install: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def imported(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", imported)
    monkeypatch.setitem(sys.modules, package, None)  # what importlib asks
    with pytest.raises(InputError, match=f"{package} is not installed") as refusal:
        jetvit.export(nn.Identity(), target=target, path=place(target, tmp_path))
    assert refusal.value.do.startswith(install)


def test_nothing_is_left_of_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever step fails, the old file stays, and nothing is beside it."""
    path = tmp_path / "model.pt2"
    path.write_text("old")
    model = CASES["sdpa"].build()
    other = plan_of(jetvit.find_attention(CASES["rope_half"].build(), IMAGE), [LINEAR])

    def breaks(program: ExportedProgram, path: Path) -> None:
        path.write_text("half")
        raise OSError("no space left")

    def other_function(path: Path, program: ExportedProgram) -> Any:
        return lambda args, kwargs: [2 * model(*args)]

    with pytest.raises(PlanError):
        jetvit.export(model, IMAGE, path=path, plan=other)
    with pytest.raises(CaptureError):
        jetvit.export(model, torch.ones(3), path=path)
    with monkeypatch.context() as patch:
        patch.setitem(export_targets.WRITERS, "pt2", breaks)
        with pytest.raises(OSError, match="no space left"):
            jetvit.export(model, IMAGE, path=path)
    with monkeypatch.context() as patch:
        patch.setitem(export_targets.READERS, "pt2", other_function)
        with pytest.raises(RewriteError, match="does not compute") as refusal:
            jetvit.export(model, IMAGE, path=path)
    assert "off by" in refusal.value.why
    with pytest.raises(InputError, match="cannot write"):
        jetvit.export(model, IMAGE, path=tmp_path / "none" / "model.pt2")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x: [x, x], "it has 2 outputs in place of 1"),
        (lambda x: [x[:1]], "output 0 is 1×"),
        (lambda x: [x.double()], "float64 in place of"),
        (lambda x: [x * float("nan")], "output 0 is off by"),
        (lambda x: [x * 1.1], "output 0 is off by"),
        (lambda x: [x * 1.0001], ""),
    ],
)
def test_a_file_that_computes_something_else(
    change: Any, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, program = exported("sdpa")
    module = program.module()
    monkeypatch.setitem(export_targets.READERS, "pt2", lambda *_: lambda args, kwargs: change(module(*args)))
    job = ExportJob.parse("pt2", tmp_path / "model.pt2")
    if not why:
        written = job.write(program)
        assert written.error is not None
        assert 0 < written.error < 1e-3
        assert written.size == (tmp_path / "model.pt2").stat().st_size
        return
    with pytest.raises(RewriteError) as refusal:
        job.write(program)
    assert why in refusal.value.why


def test_a_program_without_example_inputs_is_written_and_not_run(tmp_path: Path) -> None:
    program = torch.export.export(CASES["sdpa"].build(), (IMAGE,), strict=False)
    program._example_inputs = None
    written = ExportJob.parse("pt2", tmp_path / "model.pt2").write(program)
    assert (written.error, written.why_not_run) == (None, "the program has no example inputs")


@pytest.mark.parametrize("option", ["opset", "custom_ops", "functions", "plugins"])
def test_every_option_belongs_to_a_target(option: str) -> None:
    assert any(option in each.options for each in TARGETS.values())
    assert option in inspect.signature(jetvit.export).parameters


@pytest.mark.slow
def test_onnx_with_operators_that_no_runtime_has(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model, inputs, _ = exported("sdpa")
    plan = plan_of(jetvit.find_attention(model, *inputs[0]), [WINDOW])
    path = jetvit.export(model, *inputs[0], plan=plan, target="onnx", path=tmp_path / "m.onnx", custom_ops=True)
    assert path.is_file()
    with pytest.raises(InputError, match="opset 7"):
        jetvit.export(model, *inputs[0], target="onnx", path=tmp_path / "m.onnx", opset=7)


class WritesToItsInput(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2) + 1


class Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


def test_a_model_that_writes_to_its_input(tmp_path: Path) -> None:
    image = torch.ones(1, 3)
    jetvit.export(WritesToItsInput(), image, path=tmp_path / "m.pt2")
    assert torch.equal(image, torch.ones(1, 3))


def test_a_model_of_random_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not compute the same twice"):
        jetvit.export(Random(), torch.ones(1, 3), path=tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_inputs_that_a_program_does_not_take(tmp_path: Path) -> None:
    program = torch.export.export(nn.ReLU(), (torch.ones(1, 3),))
    job = ExportJob.parse("pt2", tmp_path / "m.pt2")
    with pytest.raises(InputError, match="does not take inputs of 1×4"):
        job.write(program, ((torch.ones(1, 4),), {}))


def test_the_names_of_a_files_inputs_are_kept(tmp_path: Path) -> None:
    program = torch.export.export(nn.ReLU(), (torch.ones(1, 3),))
    program.graph_module.meta["onnx_input_names"] = ["input.1"]  # as reading a file leaves them
    onnxruntime = pytest.importorskip("onnxruntime")
    path = jetvit.export(program, target="onnx", path=tmp_path / "m.onnx")
    assert [each.name for each in onnxruntime.InferenceSession(path).get_inputs()] == ["input.1"]
