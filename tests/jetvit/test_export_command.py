"""`jetvit export`, and `jetvit optimize` where it writes ONNX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jetvit import exporting
from jetvit.files import atomic_files, load_exported
from jetvit.patterns import RewriteError
from tests.jetvit.test_cli import ROOT, SIZE, TINY, Run, plan, refused, run  # noqa: F401  fixtures
from tests.zoo.quick import sweep

COMPARE = """
import json, sys, torch
from torch._inductor import aoti_load_package
model, (images, expected) = aoti_load_package(sys.argv[1]), torch.load(sys.argv[2], weights_only=True)
worst = max((model(image) - wanted).abs().max().item() for image, wanted in zip(images, expected))
print(json.dumps([worst, "jetvit" in sys.modules, "timm" in sys.modules]))
"""


def test_pt2(run: Run, plan: Path, tmp_path: Path):  # noqa: F811
    out = tmp_path / "fast.pt2"
    outcome = run("export", *TINY, *SIZE, "--plan", plan, "--target", "pt2", "-o", out)
    assert outcome.status == 0
    assert "2 attention sites" in outcome.out
    assert "by the plan: 1 window 2x3, 1 full" in outcome.out
    assert "largest error of the file on a batch of drawn images: 0.0e+00" in outcome.out
    assert f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB; it loads with torch.export.load" in outcome.out
    assert [file.name for file in tmp_path.iterdir()] == ["fast.pt2"]
    again = run("export", out, "--plan", plan, "--target", "pt2", "-o", tmp_path / "again.pt2")
    assert "1 attention site, 1 rewritten already" in again.out
    image = torch.randn(1, 3, 64, 96)
    first, second = (load_exported(tmp_path / name).module()(image) for name in ("fast.pt2", "again.pt2"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.slow
def test_aoti_runs_where_jetvit_is_not(run: Run, plan: Path, tmp_path: Path):  # noqa: F811
    program, out = tmp_path / "fast.pt2", tmp_path / "compiled.pt2"
    assert run("optimize", *TINY, *SIZE, "--batch", "2", "--plan", plan, "-o", program).status == 0
    with torch._inductor.config.patch({"aot_inductor.debug_compile": True}):
        outcome = run("export", program, "--plan", plan, "--target", "aoti", "-o", out)
    assert outcome.status == 0
    assert "it needs torch alone" in outcome.out
    assert "largest error of the file" in outcome.out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["compiled.pt2", "fast.pt2"]
    images = [torch.randn(2, 3, 64, 96) for _ in range(2)]
    module = load_exported(program).module()
    torch.save((images, [module(image).detach() for image in images]), tmp_path / "calls.pt")
    command = [sys.executable, "-c", COMPARE, str(out), str(tmp_path / "calls.pt")]
    fresh = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert fresh.returncode == 0, fresh.stderr
    worst, *imported = json.loads(fresh.stdout.splitlines()[-1])
    assert worst < 1e-4
    assert imported == [False, False]
    torch.save(([torch.zeros(1, 3, 64, 96)], [torch.zeros(1, 1000)]), tmp_path / "calls.pt")
    checked = {**os.environ, "AOTI_RUNTIME_CHECK_INPUTS": "1"}  # as the help of the command says
    wrong = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=checked)
    assert wrong.returncode != 0
    assert "expected: 2, but got: 1" in wrong.stderr
    assert "compiled code" in run("explain", out).err


@pytest.mark.parametrize("command", sweep(["export", "optimize"], quick=["optimize"]))
def test_onnx(run: Run, plan: Path, tmp_path: Path, command: str):  # noqa: F811
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    out = tmp_path / "fast.onnx"
    target = ("--target", "onnx") if command == "export" else ()
    outcome = run(command, *TINY, *SIZE, "--plan", plan, "--dynamic", *target, "-o", out)
    assert outcome.status == 0
    assert "largest error of the file" in outcome.out
    assert "any ONNX runtime" in outcome.out
    assert [file.name for file in tmp_path.iterdir()] == ["fast.onnx"]
    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    assert session.run(None, {name: torch.zeros(3, 3, 32, 64).numpy()})[0].shape == (3, 1000)


def test_wrong_uses(refused: Run, tmp_path: Path):  # noqa: F811
    out = tmp_path / "m.pt2"
    assert (
        "'onxx' is none of pt2, aoti, onnx, tensorrt"
        in refused("export", *TINY, "--target", "onxx", "-o", out, status=2).err
    )
    assert "--target" in refused("export", *TINY, "-o", out, status=2).err
    assert "did you mean '--plugins'" in refused("export", *TINY, "--plugin", "-o", out, status=2).err
    assert "ends in .onnx" in refused("export", *TINY, "--target", "onnx", "-o", out).err
    assert "takes no option '--opset'" in refused("export", *TINY, "--target", "aoti", "--opset", "18", "-o", out).err
    missing = refused("export", *TINY, "--target", "pt2", "-o", tmp_path / "none" / "m.pt2")
    assert "mkdir -p" in missing.err
    assert "note:" not in missing.err  # it was refused before the model was loaded
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["aoti", "onnx"])
def test_a_target_that_fails_leaves_nothing(
    refused: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
):
    if target == "onnx":
        pytest.importorskip("onnxscript")

    def fail(program: Any, path: Path, **options: Any) -> None:
        path.write_text("half")
        path.with_name("weights").write_text("half")
        raise RewriteError("the target cannot take it", why="a test", do="nothing")

    monkeypatch.setitem(exporting.WRITERS, target, fail)
    out = tmp_path / ("m.onnx" if target == "onnx" else "m.pt2")
    assert "the target cannot take it" in refused("export", *TINY, *SIZE, "--target", target, "-o", out).err
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_killed_leaves_no_file(tmp_path: Path):
    code = (
        "import os, signal, sys; from pathlib import Path; from jetvit.files import atomic_files\n"
        "with atomic_files(sys.argv[1]) as path:\n    path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    out = tmp_path / "m.pt2"
    assert subprocess.run([sys.executable, "-c", code, str(out)], timeout=120).returncode < 0
    assert not out.exists()


def test_files_beside_the_file_take_their_places_first(tmp_path: Path):
    out = tmp_path / "m.onnx"
    out.write_text("old")
    with atomic_files(out) as path:
        path.write_text("new")
        path.with_name("m.onnx.data").write_text("weights")
        assert out.read_text() == "old"
        assert not (tmp_path / "m.onnx.data").exists()
    assert (out.read_text(), (tmp_path / "m.onnx.data").read_text()) == ("new", "weights")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("shape", ["8x3x64x96", "images=8x3x0", "images=", "=8x3"])
def test_a_largest_shape_that_is_none(refused: Run, tmp_path: Path, shape: str):  # noqa: F811
    words = ("export", *TINY, *SIZE, "--target", "tensorrt", "--max-shape", shape, "-o", tmp_path / "m.pt2")
    assert "write it like pixel_values=8x3x1024x2048" in refused(*words, status=2).err


def test_largest_shapes_reach_the_target(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    given = {}
    monkeypatch.setattr(exporting, "require_target", lambda target: None)
    monkeypatch.setitem(exporting.READERS, "tensorrt", lambda *_, **__: "it is not there")

    def write(program: Any, path: Path, **options: Any) -> None:
        given.update(options)
        path.write_bytes(b"engine")

    monkeypatch.setitem(exporting.WRITERS, "tensorrt", write)
    words = ("export", *TINY, *SIZE, "--target", "tensorrt", "--max-shape", "x=8x3x64x96", "-o", tmp_path / "m.pt2")
    assert run(*words).status == 0
    assert given == {"max_shapes": {"x": (8, 3, 64, 96)}}


class SequenceFirst(torch.nn.Module):
    """nn.MultiheadAttention as it is by default: its tokens are [token, batch, dim]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attn = torch.nn.Conv2d(3, 16, 8, 8), torch.nn.MultiheadAttention(16, 2, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image)
        grid, x = x.shape[2:], x.flatten(2).permute(2, 0, 1)
        return self.attn(x, x, x, need_weights=False)[0].permute(1, 2, 0).unflatten(2, grid)


def test_a_batch_of_one_that_is_refused_is_no_fixed_size(refused: Run, tmp_path: Path):  # noqa: F811
    """torch guards the reshape of a sequence-first model on more than one image; other sizes are taken."""
    model = f"{__name__}:SequenceFirst"
    outcome = refused("export", model, "--size", "32x48", "--dynamic", "--target", "pt2", "-o", tmp_path / "never.pt2")
    assert "takes two images and more, and not one" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_the_model_itself_is_not_overwritten(run: Run, refused: Run, plan: Path, tmp_path: Path):  # noqa: F811
    path = tmp_path / "model.pt2"
    assert run("optimize", *TINY, *SIZE, "-o", path).status == 0
    before = path.read_bytes()
    (tmp_path / "link.pt2").symlink_to(path)
    for out in (path, tmp_path / "link.pt2"):
        outcome = refused("optimize", path, "--plan", plan, "-o", out)
        assert "it is the model that is to be rewritten" in outcome.err
    assert path.read_bytes() == before


def test_where_all_was_refused_nothing_is_said_to_be_missing(run: Run, tmp_path: Path):  # noqa: F811
    outcome = run(
        "optimize", "timm:beit_base_patch16_224", *("--model-arg=depth=1", "--model-arg=embed_dim=32"),
        *("--model-arg=num_heads=2", "--size", "224x224", "-o", tmp_path / "beit.pt2"),
    )  # fmt: skip
    assert "1 attention found and refused" in outcome.out
    assert "exact rewrites: " in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "pt2", "--custom-ops"], "the target 'pt2' takes no option '--custom-ops'"),
        (["--target", "onnx", "--max-shape", "x=1x3x64x96"], "the target 'onnx' takes no option '--max-shape'"),
    ],
)
def test_options_are_named_as_they_were_given(words: list[str], message: str, refused: Run, tmp_path: Path):  # noqa: F811
    assert message in refused("export", *TINY, *SIZE, *words, "-o", tmp_path / "never.pt2").err


@pytest.mark.parametrize(
    ("model", "message"),
    [("nowhere.py", "nowhere:FUNCTION"), ("{folder}.onnx", "is a folder"), ("{folder}.pt2", "is a folder")],
)
def test_what_is_no_model(model: str, message: str, refused: Run, tmp_path: Path):  # noqa: F811
    for suffix in (".onnx", ".pt2"):
        (tmp_path / f"d{suffix}").mkdir()
    assert message in refused("explain", model.format(folder=tmp_path / "d")).err


END = """
import os, signal, sys
from jetvit import exporting
from jetvit.cli import main
def write(program, path, **options):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGTERM)
exporting.WRITERS["pt2"] = write
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_request_to_end_leaves_nothing(tmp_path: Path):
    command = [sys.executable, "-c", END, "export", *TINY, *SIZE, "--target", "pt2", "-o", str(tmp_path / "never.pt2")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert found.returncode == 143
    assert found.stderr.endswith("ended by SIGTERM; nothing was left half-written\n")
    assert list(tmp_path.iterdir()) == []
