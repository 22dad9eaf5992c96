"""`jetvit.load`: files of every target run as the original does, refuse what they do not take, and are told apart."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import jetvit
from jetvit.passes.targets.aoti import read_signature
from jetvit.passes.targets.onnx import onnx_model, write_onnx
from jetvit.passes.targets.signature import KEY, Signature
from jetvit.patterns import InputError
from jetvit.torch_private import aot_compile, package_pt2
from tests.passes.models import LINEAR, WINDOW, exported, plan_of, planned

IMAGE = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
OPEN = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}


class Model(nn.Module):
    """Patches and their means, in a nested output; the mask may be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 4, 4)

    def forward(self, pixel_values: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        tokens = self.conv(pixel_values).flatten(2).transpose(1, 2)
        tokens = tokens if mask is None else tokens * mask[:, None]
        return {"tokens": tokens.softmax(-1), "more": (tokens.mean(1), [pixel_values * 2])}


MODEL = Model().eval()
RUNS = [
    pytest.param("pt2", None, id="pt2"),
    pytest.param("aoti", None, id="aoti"),
    pytest.param("onnx", "onnxruntime", id="onnxruntime"),
    pytest.param("onnx", "openvino", id="openvino"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Files of the model by target, each written once."""
    written: dict[Any, Path] = {}

    def write(target: str, is_open: bool = True) -> Path:
        if target == "onnx":
            pytest.importorskip("onnxscript")
        path = tmp_path_factory.mktemp("files") / f"model.{'onnx' if target == 'onnx' else 'pt2'}"
        if (target, is_open) not in written:
            # Without optimisation the C++ compiler takes a twentieth of its time.
            with torch._inductor.config.patch({"aot_inductor.debug_compile": True}):
                shapes = OPEN if is_open else None
                jetvit.export(MODEL, IMAGE, path=path, target=target, dynamic_shapes=shapes)
            written[target, is_open] = path
        return written[target, is_open]

    return write


def loaded(file: Callable[..., Path], target: str, runtime: str | None, **options: Any) -> Any:
    if runtime is not None:
        pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    return jetvit.load(file(target), runtime=runtime, **options)


@pytest.mark.parametrize(("target", "runtime"), RUNS)
def test_a_file_is_called_as_the_model_is(target: str, runtime: str | None, file: Callable[..., Path]) -> None:
    model = loaded(file, target, runtime)
    assert "pixel_values: float32 [batch, 3, height, width]" in repr(model)
    inputs = {
        "another size": torch.randn(3, 3, 20, 32),
        "a batch of one": IMAGE[:1],
        "channels last": IMAGE.to(memory_format=torch.channels_last),
        "a slice": torch.randn(2, 3, 16, 48)[..., ::2],
        "a parameter": nn.Parameter(IMAGE),
    }
    for name, images in inputs.items():
        expected = MODEL(images)
        for found in (model(images), model(pixel_values=images)):
            assert (type(found), list(found), type(found["more"])) == (dict, ["tokens", "more"], tuple), name
            assert not found["tokens"].requires_grad
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("target", "runtime"), RUNS)
def test_inputs_that_a_file_does_not_take(target: str, runtime: str | None, file: Callable[..., Path]) -> None:
    model = loaded(file, target, runtime)
    for args, kwargs, what in [
        ((IMAGE[:, :2],), {}, "its channels (axis 1) must be 3"),
        ((IMAGE[0],), {}, "it has 3 axes; the file takes [batch, 3, height, width]"),
        ((IMAGE.double(),), {}, "it was written for float32"),
        ((torch.zeros(2, 3, 3, 24),), {}, "its height (axis 2) must be at least 4"),
        ((), {}, "it takes pixel_values"),
        ((), {"images": IMAGE}, "it takes pixel_values"),
        ((IMAGE, torch.ones(2, 24)), {}, "it takes pixel_values"),
    ]:
        with pytest.raises(InputError) as refusal:
            model(*args, **kwargs)
        assert refusal.value.why == what
        assert "model." in refusal.value.what


@pytest.mark.parametrize(
    ("target", "runtime"),
    [RUNS[0], pytest.param("aoti", None, id="aoti", marks=pytest.mark.slow), RUNS[2], RUNS[3]],
)
def test_a_fixed_size(target: str, runtime: str | None, file: Callable[..., Path]) -> None:
    model = loaded(lambda target: file(target, is_open=False), target, runtime, warm_up=True)
    torch.testing.assert_close(model(IMAGE), MODEL(IMAGE), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"its height \(axis 2\) must be 16") as refusal:
        model(torch.zeros(2, 3, 20, 24))
    assert "--dynamic" in refusal.value.do


@pytest.mark.parametrize(("target", "runtime"), RUNS[2:])
def test_threads(target: str, runtime: str, file: Callable[..., Path]) -> None:
    torch.testing.assert_close(
        loaded(file, target, runtime, threads=1)(IMAGE), MODEL(IMAGE), rtol=1e-4, atol=1e-5
    )  # fmt: skip


def test_warming_up_runs_the_example(file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    real = Signature.bind

    def bind(self: Signature, file: str, args: Any, kwargs: Any) -> Any:
        shapes.append(args[0].shape)
        return real(self, file, args, kwargs)

    path = file("pt2")  # it is run as it is written
    monkeypatch.setattr(Signature, "bind", bind)
    jetvit.load(path, warm_up=True)
    assert shapes == [IMAGE.shape, IMAGE.shape]


@pytest.mark.parametrize("target", ["pt2", "onnx"])
def test_a_rewritten_model(target: str, tmp_path: Path) -> None:
    _, inputs, program = exported("dict_to_dataclass")
    plan = plan_of(jetvit.find_attention(program), [WINDOW, LINEAR])
    path = tmp_path / f"m.{target}"
    jetvit.export(program, plan=plan, target=target, path=path)
    found, expected = jetvit.load(path)(*inputs[0], **inputs[1]), vars(planned(program, inputs, plan))
    assert list(found) == [name for name, value in expected.items() if value is not None]
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


# --- AOTInductor ------------------------------------------------------------------------------------------------------

ALONE = """
import json, sys, torch
model = torch._inductor.aoti_load_package(sys.argv[1])
results = {}
for name, images in torch.load(sys.argv[2]).items():
    try:
        results[name] = list(model(images)["tokens"].shape)
    except RuntimeError as error:
        results[name] = str(error)
assert "jetvit" not in sys.modules
print(json.dumps(results))
"""


@pytest.mark.parametrize("checks", [True, False])
def test_a_package_with_torch_alone_checks_its_inputs(checks: bool, file: Callable[..., Path], tmp_path: Path) -> None:
    package = file("aoti")
    inputs = {"other": torch.zeros(1, 3, 20, 24), "small": torch.zeros(2, 2, 16, 24), "int": IMAGE.int()}
    inputs["strides"] = IMAGE.to(memory_format=torch.channels_last)
    if not checks:
        inputs = {"other": inputs["other"], "strides": inputs["strides"]}
    torch.save(inputs, tmp_path / "inputs.pt")
    environment = {name: value for name, value in os.environ.items() if name != "AOTI_RUNTIME_CHECK_INPUTS"}
    environment |= {} if checks else {"AOTI_RUNTIME_CHECK_INPUTS": "0"}
    command = [sys.executable, "-c", ALONE, str(package), str(tmp_path / "inputs.pt")]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["other"] == [1, 30, 8]
    if not checks:
        assert found["strides"] == [2, 24, 8]  # of wrong values
        return
    # Older releases of torch print the reason, and raise without it.
    reasons = process.stderr + "".join(found[name] for name in ("small", "int", "strides"))
    for reason in ("unmatched dim value at 1, expected: 3, but got: 2", "unmatched dtype", "unmatched stride value"):
        assert reason in reasons


def test_a_package_of_torch_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = torch.export.export(nn.ReLU(), (torch.ones(2, 3),))
    options = {"aot_inductor.package": True, "aot_inductor.output_path": str(tmp_path / "code")}
    with torch.no_grad(), torch._inductor.config.patch({"aot_inductor.debug_compile": True}):
        files = aot_compile(program.module(), (torch.ones(2, 3),), {}, options=options)
    package_pt2(str(tmp_path / "m.pt2"), aoti_files={"model": files})
    assert read_signature(tmp_path / "m.pt2") is None
    with caplog.at_level(logging.WARNING):
        model = jetvit.load(tmp_path / "m.pt2")
    assert "They are not checked" in caplog.text
    assert torch.equal(model(-torch.ones(2, 3)), torch.zeros(2, 3))
    with pytest.raises(InputError, match="cannot be warmed up"):
        model.warm_up()


def test_a_package_that_cannot_be_loaded(file: Callable[..., Path], tmp_path: Path) -> None:
    """Its library is cut off, as one for another processor or system would be refused."""
    with zipfile.ZipFile(file("aoti")) as old, zipfile.ZipFile(tmp_path / "m.pt2", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data[:100] if name.endswith(".so") else data)
    with pytest.raises(InputError, match="cannot be loaded here") as refusal:
        jetvit.load(tmp_path / "m.pt2")
    assert refusal.value.do.startswith("write it again on this machine")


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_onnx_file_of_another_tool(runtime: str, tmp_path: Path) -> None:
    """Without a signature of ours: fixed sizes and types are checked, and the outputs are a dict by name."""
    pytest.importorskip("onnxscript")
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    model = onnx_model(torch.export.export(MODEL, (IMAGE,), dynamic_shapes=OPEN))
    del model.metadata_props[KEY]
    write_onnx(model, tmp_path / "m.onnx")
    found = jetvit.load(tmp_path / "m.onnx", runtime=runtime)
    result = found(IMAGE)
    assert list(result) == ["tokens", "more_0", "more_1_0"]
    torch.testing.assert_close(result["more_0"], MODEL(IMAGE)["more"][0], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"its channels \(axis 1\) must be 3"):
        found(IMAGE[:, :2])
    with pytest.raises(InputError, match="does not take inputs of 2×3×2×2"):
        found(torch.zeros(2, 3, 2, 2))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("option", ["functions", "custom_ops"])
def test_operators_that_a_runtime_does_not_know(option: str, runtime: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    _, inputs, program = exported("sdpa")
    plan = plan_of(jetvit.find_attention(program), [WINDOW])
    path = tmp_path / "m.onnx"
    jetvit.export(program, plan=plan, target="onnx", path=path, **{option: True})
    if (option, runtime) == ("functions", "onnxruntime"):
        torch.testing.assert_close(
            jetvit.load(path)(*inputs[0]), planned(program, inputs, plan), rtol=1e-4, atol=1e-4
        )  # fmt: skip
        return
    with pytest.raises(InputError, match="as functions, or as nodes without a body") as refusal:
        jetvit.load(path, runtime=runtime)
    assert "--functions" in refusal.value.do


@pytest.mark.parametrize("antialias", [True, False])
def test_resampling_that_openvino_computes_wrong(antialias: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino", reason="OpenVINO is not installed")

    class Smaller(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return nn.functional.interpolate(image, size=(8, 9), mode="bicubic", antialias=antialias)

    program = torch.export.export(Smaller(), (IMAGE,))
    write_onnx(onnx_model(program), tmp_path / "m.onnx")
    torch.testing.assert_close(jetvit.load(tmp_path / "m.onnx")(IMAGE), program.module()(IMAGE), rtol=0, atol=1e-4)
    if antialias:  # should OpenVINO antialias one day, the check can go
        with pytest.raises(InputError, match="OpenVINO would give wrong results") as refusal:
            jetvit.load(tmp_path / "m.onnx", runtime="openvino")
        assert "for one size" in refusal.value.do
        return
    found = jetvit.load(tmp_path / "m.onnx", runtime="openvino")(IMAGE)
    torch.testing.assert_close(found, program.module()(IMAGE), rtol=0, atol=1e-4)


def test_a_dtype_that_numpy_does_not_have(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    program = torch.export.export(nn.Flatten(), (torch.ones(2, 3, dtype=torch.bfloat16),))
    write_onnx(onnx_model(program), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="numpy does not have"):
        jetvit.load(tmp_path / "m.onnx")


# --- what cannot be loaded --------------------------------------------------------------------------------------------


def archive(path: Path, **files: str) -> None:
    with zipfile.ZipFile(path, "w") as new:
        for name, text in files.items():
            new.writestr(f"model/{name}", text)


@pytest.mark.parametrize(
    ("write", "what", "why"),
    [
        (lambda path: None, "no file", ""),
        (lambda path: path.mkdir(), "is a folder", ""),
        (lambda path: path.write_bytes(b""), "cannot be loaded", "it is empty"),
        (lambda path: path.write_text("weights"), "cannot be loaded", "it is neither a zip archive"),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut off"), "cannot be loaded", "the archive is damaged"),
        (
            lambda path: torch.save({"w": torch.ones(1)}, path),
            "cannot be loaded",
            "it holds pickled tensors",
        ),
        (lambda path: archive(path, readme="hello"), "cannot be loaded", "it holds another zip archive"),
        (lambda path: path.write_bytes(b"\x08\x0a rest"), "does not load", ""),
    ],
)
def test_files_that_are_nothing_of_the_kind(write: Callable[[Path], Any], what: str, why: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "file.pt2"
    write(path)
    with pytest.raises(InputError, match=what) as refusal:
        jetvit.load(path)
    assert refusal.value.why.startswith(why)
    assert refusal.value.do


@pytest.mark.parametrize(
    ("target", "options", "what"),
    [
        ("pt2", {"runtime": "openvino"}, "takes no runtime"),
        ("pt2", {"threads": 1}, "takes no threads"),
        ("onnx", {"runtime": "tvm"}, "there is no runtime 'tvm'"),
    ],
)
def test_options_that_do_not_fit(target: str, options: dict[str, Any], what: str, file: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=what):
        jetvit.load(file(target), **options)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtime_that_is_missing(runtime: str, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = file("onnx")
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(InputError, match=f"the package {runtime} is not installed") as refusal:
        jetvit.load(path, runtime=runtime)
    assert refusal.value.do.startswith("pip install")


def test_engines_of_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that calls engines is loaded by Torch-TensorRT, and by nothing else."""
    path = tmp_path / "m.pt2"
    archive(path, **{"models/model.json": '{"target": "torch.ops.tensorrt.execute_engine.default"}'})
    with pytest.raises(InputError, match="Torch-TensorRT"):
        jetvit.load(path)
    program = torch.export.export(MODEL, (IMAGE,))
    library = SimpleNamespace(load=lambda path: program)
    monkeypatch.setattr("jetvit.passes.targets.tensorrt.compiler.require_tensorrt", lambda: library)
    model = jetvit.load(path)
    assert model.kind == "tensorrt"
    torch.testing.assert_close(model(IMAGE), MODEL(IMAGE), rtol=0, atol=1e-5)
