"""Compiled packages: they run where there is torch and nothing else, and leave nothing behind."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import jetvit
from jetvit.cost_model import Choice
from jetvit.files import load_exported
from jetvit.kernels.window_attention.counted import count_windows, window_attention_counted
from jetvit.passes.targets import aoti as to_aoti
from jetvit.passes.targets.aoti import _count_windows, require_compiler, write_aoti
from jetvit.passes.targets.plain_outputs import plain_program
from jetvit.patterns import InputError, RewriteError
from tests.passes.models import FULL, LINEAR, WINDOW, plan_of
from tests.zoo import CASES
from tests.zoo.case import images

CONVOLVED = Choice("linear", conv_size=3)

RUN = """
import json, sys
import torch
from torch._inductor import aoti_load_package
model = aoti_load_package(sys.argv[1])
worst = 0.0
for args, kwargs, expected in torch.load(sys.argv[2], weights_only=True):
    found = model(*args, **kwargs)
    ours, theirs = ([found], [expected]) if isinstance(expected, torch.Tensor) else (
        list(found.values()), list(expected.values()))
    assert isinstance(expected, torch.Tensor) or list(found) == list(expected), (list(found), list(expected))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        worst = max(worst, ((a - b).norm() / b.norm()).item())
packages = [name for name in ("jetvit", "transformers", "timm", "onnx") if name in sys.modules]
print(json.dumps({"worst": worst, "packages": packages}))
"""


@pytest.fixture(autouse=True)
def _quick_compilation(frozen_imports: None) -> Iterator[None]:
    """Without optimisation the C++ compiler takes a twentieth of its time."""
    with torch.no_grad(), torch._inductor.config.patch({"aot_inductor.debug_compile": True}):
        yield


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the files of a compilation are put in."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    here = partial(tempfile.TemporaryDirectory, dir=folder)
    monkeypatch.setattr(to_aoti, "tempfile", SimpleNamespace(TemporaryDirectory=here))
    return folder


def rewritten(name: str, choices: list[Choice], open_sizes: bool = False) -> ExportedProgram:
    """A model of the zoo with a plan, as a program of plain outputs."""
    case = CASES[name]
    args, kwargs = case.inputs()
    shapes = case.dynamic_shapes(args, kwargs) if open_sizes else None
    program = torch.export.export(case.build(), args, kwargs, dynamic_shapes=shapes, strict=False)
    sites = jetvit.find_attention(program)
    kernels = {
        f"{site.name}.linear_attention.b2": images(1, site.num_heads * site.head_dim * 9)[0] / 9 for site in sites
    }
    held = {site.name for site, choice in zip(sites, itertools.cycle(choices), strict=False) if choice == CONVOLVED}
    weights = {name: kernel for name, kernel in kernels.items() if name.removesuffix(".linear_attention.b2") in held}
    return plain_program(jetvit.optimize(program, plan=plan_of(sites, choices, weights=weights)))


def in_a_fresh_process(package: Path, program: ExportedProgram, calls: list[Any], tmp_path: Path) -> dict[str, Any]:
    """The largest relative error of a package on calls, and what was imported to run it, in a folder of its own."""
    module = program.module()
    torch.save([(args, kwargs, module(*args, **kwargs)) for args, kwargs in calls], tmp_path / "calls.pt")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(package), str(tmp_path / "calls.pt")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert list(folder.iterdir()) == []
    return json.loads(result.stdout.splitlines()[-1])


def code_of(package: Path) -> str:
    """The generated sources in a package."""
    with zipfile.ZipFile(package) as archive:
        return "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith((".cpp", ".json")))


@pytest.mark.parametrize(
    ("name", "choices", "open_sizes"),
    [
        # A quick run compiles a package below, with an operator of another package.
        pytest.param("rope_half", [WINDOW, CONVOLVED], False, marks=pytest.mark.slow, id="a plan"),
        pytest.param("dict_to_dataclass", [FULL, LINEAR], True, marks=pytest.mark.slow, id="open sizes"),
        pytest.param("sdpa", [WINDOW], True, marks=pytest.mark.slow, id="windows of open sizes"),
        pytest.param("hf_dinov3_sdpa", [WINDOW, LINEAR], False, marks=pytest.mark.slow, id="DINOv3"),
        pytest.param("hf_dinov3_sdpa", [CONVOLVED, WINDOW], True, marks=pytest.mark.slow, id="DINOv3 of open sizes"),
        pytest.param("hf_depth_anything_sdpa", [WINDOW, LINEAR], False, marks=pytest.mark.slow, id="DepthAnything"),
    ],
)
def test_a_package_needs_torch_alone(
    name: str, choices: list[Choice], open_sizes: bool, tmp_path: Path, scratch: Path
) -> None:
    program = rewritten(name, choices, open_sizes)
    text, state = str(program.graph), {key: value.clone() for key, value in program.state_dict.items()}
    package = tmp_path / "model.pt2"
    here = set(Path.cwd().iterdir())
    write_aoti(program, package)
    assert set(Path.cwd().iterdir()) == here
    assert list(scratch.iterdir()) == []
    assert str(program.graph) == text
    torch.testing.assert_close(dict(program.state_dict), state, rtol=0, atol=0)
    assert "jetvit::" not in code_of(package)
    assert "torch.ops.jetvit" not in code_of(package)
    case = CASES[name]
    calls = [case.inputs()]
    if open_sizes:
        assert case.oblong is not None
        calls += [case.inputs(batch=3, size=case.oblong), case.inputs(batch=1)]
    found = in_a_fresh_process(package, program, calls, tmp_path)
    assert found["packages"] == []
    assert found["worst"] < 1e-5
    with pytest.raises(InputError, match="AOTInductor package") as refusal:
        load_exported(package)
    assert "aoti_load_package" in refusal.value.do


@pytest.mark.parametrize(
    ("choices", "open_sizes", "counts"),
    [([WINDOW], True, 1), ([WINDOW, Choice("window", window=(3, 2))], True, 2), ([WINDOW], False, 0)],
    ids=["one window", "two windows", "one size"],
)
def test_windows_of_open_sizes_are_counted_once_for_all_layers(
    choices: list[Choice], open_sizes: bool, counts: int
) -> None:
    """Inductor takes more than a quarter of an hour over windows whose number is a quotient of the image's sizes."""
    program = rewritten("sdpa", choices, open_sizes)
    module = program.module()
    _count_windows(module)
    targets = [node.target for node in module.graph.nodes]
    windows = len(program.graph.find_nodes(op="call_function", target=torch.ops.jetvit.window_attention.default))
    assert windows == 2
    assert targets.count(count_windows) == counts
    assert targets.count(window_attention_counted) == (windows if open_sizes else 0)
    case = CASES["sdpa"]
    sizes = [{}, {"batch": 3, "size": case.oblong}] if open_sizes else [{}]
    for args, kwargs in (case.inputs(**each) for each in sizes):
        torch.testing.assert_close(module(*args, **kwargs), program.module()(*args, **kwargs), rtol=0, atol=1e-5)


def small_program(function: Callable[[Tensor], Tensor]) -> ExportedProgram:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return torch.export.export(Model(), (torch.ones(2, 3),), strict=False)


@pytest.mark.slow
def test_an_operator_of_another_package(tmp_path: Path) -> None:
    @torch.library.custom_op("jetvit_tests::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return 2 * x

    double.register_fake(torch.empty_like)
    with pytest.raises(RewriteError, match="would not run with torch alone") as refusal:
        write_aoti(small_program(double), tmp_path / "model.pt2")
    assert "jetvit_tests" in refusal.value.why
    assert list(tmp_path.iterdir()) == []


def test_what_inductor_cannot_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("unknown layout\nof a buffer")

    monkeypatch.setattr("torch._inductor.aot_compile", fail)
    with pytest.raises(RewriteError, match="cannot compile") as refusal:
        write_aoti(small_program(torch.sin), tmp_path / "model.pt2")
    assert refusal.value.why == "AssertionError: unknown layout of a buffer"


def test_no_compiler(tmp_path: Path) -> None:
    from torch._inductor import cpp_builder

    require_compiler()
    cpp_builder.cpp_compiler_search.cache_clear()
    try:
        # Not by monkeypatch, which would leave Inductor without this setting for all tests to come.
        with (
            torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
            pytest.raises(InputError, match="needs a C\\+\\+ compiler") as refusal,
        ):
            write_aoti(small_program(torch.sin), tmp_path / "model.pt2")
    finally:
        cpp_builder.cpp_compiler_search.cache_clear()
    assert "install one" in refusal.value.do


def test_a_program_without_example_inputs(tmp_path: Path) -> None:
    program = small_program(torch.sin)
    program._example_inputs = None
    with pytest.raises(InputError, match="no example inputs"):
        write_aoti(program, tmp_path / "model.pt2")
