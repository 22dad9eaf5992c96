"""What the command line says of bad inputs: runs them in a folder of bad files, and writes docs/bad-inputs.md.

    python -m benchmarks.bad_inputs            run them all, and write the page
    python -m benchmarks.bad_inputs --check    write nothing; exit with 1 if the page is behind

The commands run in this process, offline and in a temporary folder, so that no path of this machine is in a message.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import pickle
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.results import write_page
from jetvit.api import find_attention
from jetvit.cli import main as jetvit
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.demo.small_vit import load_small_vit

PAGE = Path(__file__).parent.parent / "docs" / "bad-inputs.md"
MODEL, SIZE = "my_models:vit", ("--size", "64x64")
MODELS = '''\
"""Factories of models, good and bad."""

import torch
from jetvit.demo.small_vit import load_small_vit


def vit():
    return load_small_vit()


def broken():
    raise FileNotFoundError("backbone.ckpt")


def nothing():
    pass


def needs_depth(depth):
    return load_small_vit()


def convolution():
    return torch.nn.Conv2d(3, 4, 8).eval()


limit = 3
'''
INTRO = """\
# What jetvit says of bad inputs

Written by `python -m benchmarks.bad_inputs`, which runs every command below: {count} of them, in a folder of bad files.
Nothing here ends in a traceback, and no refused command leaves a file behind. The exit status is 2 where the command
line itself is wrong, and 1 where a file, a model or a device is. `my_models.py` in that folder has factories of models;
`my_models:vit` is a good one, and `photos/` and `plan/` are good too.
"""


@dataclass(frozen=True)
class BadInput:
    """A command line and what is wrong with it. unwritable: the folder that the user may not write to."""

    what: str
    words: tuple[str, ...]
    unwritable: str = ""


@dataclass(frozen=True)
class Refusal:
    """The exit status of a command, and what it printed."""

    status: int
    message: str


def explain(what: str, *words: str) -> BadInput:
    """Return a `jetvit explain` of a good model."""
    return BadInput(what, ("explain", MODEL, *words))


def calibrate(what: str, *words: str) -> BadInput:
    """Return a `jetvit calibrate` of a good model."""
    return BadInput(what, ("calibrate", MODEL, *SIZE, *words))


def of_model(what: str, model: str, *words: str) -> BadInput:
    """Return a `jetvit explain` of another model."""
    return BadInput(what, ("explain", model, *words))


PHOTOS, TO = ("--images", "photos"), ("-o", "new")
SECTIONS: dict[str, tuple[BadInput, ...]] = {
    "The command": (
        BadInput("no command", ()),
        BadInput("a command with a typing error", ("explian", MODEL)),
        BadInput("no model", ("explain",)),
        explain("an option with a typing error", "--dynamc"),
        explain("a word too many", "again"),
        explain("two forms of output at once", "--json", "--html", "page.html"),
        BadInput("a required option is missing", ("calibrate", MODEL, *TO)),
        BadInput("check without images", ("check", MODEL, "--plan", "plan")),
        BadInput("bench with images and no plan", ("bench", MODEL, *SIZE, *PHOTOS)),
    ),
    "Sizes and numbers": (
        explain("a negative size", "--size", "-64x96"),
        explain("a size of zero", "--size", "0x0"),
        explain("a size beyond all memory", "--size", "640000x960000"),
        explain("one side only", "--size", "64"),
        BadInput("no multiple of the patch", ("explain", "timm:vit_tiny_patch16_224", "--size", "65x97")),
        explain("no size, of a model that does not say its own"),
        explain("a batch of zero", *SIZE, "--batch", "0"),
        explain("an unknown precision", *SIZE, "--dtype", "float8"),
        calibrate("a negative drift", *PHOTOS, *TO, "--max-drift", "-0.1"),
        calibrate("a drift that is no number", *PHOTOS, *TO, "--max-drift", "nan"),
        calibrate("a budget in percent", *PHOTOS, *TO, "--budget", "60%"),
        calibrate("a standard deviation of zero", *PHOTOS, *TO, "--std", "0,1,1"),
        BadInput("too few rounds", ("bench", MODEL, *SIZE, "--rounds", "2")),
        BadInput("an unknown target", ("export", MODEL, *SIZE, "--target", "coreml", "-o", "fast.mlmodel")),
        BadInput("no time to measure", ("measure", "--minutes", "0")),
        BadInput("an unknown model of the sweep", ("measure", "--models", "ViT-XL")),
        explain("a device that does not exist", *SIZE, "--device", "gpu"),
        explain("a GPU that is not there", *SIZE, "--device", "cuda:99"),
    ),
    "Models": (
        of_model("a name without its prefix", "vit_tiny_patch16_224"),
        of_model("an unknown prefix", "dinov3:base"),
        of_model("a timm name with a typing error", "timm:vit_tiny_patch16_244"),
        of_model("a folder that is not there", "hf:no-such-folder"),
        of_model("a Hugging Face folder without config.json", "hf:no-config"),
        of_model("a config.json that is cut off", "hf:cut-config"),
        of_model("a Hugging Face folder without weights", "hf:no-weights"),
        of_model("an architecture that transformers does not know", "hf:unknown-architecture"),
        of_model("a model of the hub, offline", "hf:some-org/some-model"),
        of_model("a module that is not there", "my_modells:vit", *SIZE),
        of_model("a function that is not there", "my_models:vitt", *SIZE),
        of_model("no function", "my_models:limit", *SIZE),
        of_model("a function that raises", "my_models:broken", *SIZE),
        of_model("a function that returns nothing", "my_models:nothing", *SIZE),
        of_model("a function that needs an argument", "my_models:needs_depth", *SIZE),
        of_model("an argument that the function does not take", MODEL, *SIZE, "--model-arg", "depth=3"),
        of_model("an argument without a value", MODEL, *SIZE, "--model-arg", "depth"),
        of_model("a program that is not there", "no-such.pt2"),
        of_model("a .pt2 file that is something else", "text.pt2"),
        of_model("an .onnx file that is something else", "text.onnx"),
    ),
    "Weights": (
        of_model("weights that are not there", "timm:vit_tiny_patch16_224", "--weights", "none.safetensors"),
        of_model("a .safetensors file that is cut off", MODEL, *SIZE, "--weights", "cut.safetensors"),
        of_model("a .safetensors file that is text", MODEL, *SIZE, "--weights", "text.safetensors"),
        of_model("a pickle that would run code", MODEL, *SIZE, "--weights", "code.pt"),
        of_model("weights of another model", MODEL, *SIZE, "--weights", "other.safetensors"),
        of_model("weights of other shapes", MODEL, *SIZE, "--weights", "narrow.safetensors"),
        of_model("a NaN in the weights", MODEL, *SIZE, "--weights", "nan.safetensors"),
        of_model("a file of another kind", MODEL, *SIZE, "--weights", "weights.npz"),
    ),
    "Images": (
        calibrate("a folder that is not there", "--images", "fotos", *TO),
        calibrate("a file in the place of a folder", "--images", "my_models.py", *TO),
        calibrate("an empty folder", "--images", "empty", *TO),
        calibrate("a folder of broken photos", "--images", "broken", *TO),
        calibrate("a text file with the name of a photo", "--images", "text", *TO, "--strict"),
        calibrate("a folder that is a link to itself", "--images", "loop", *TO),
        calibrate("a single photo", "--images", "single", *TO),
        calibrate("fewer photos than a batch", *PHOTOS, *TO, "--batch", "64"),
    ),
    "Plans": (
        explain("a plan that is not there", *SIZE, "--plan", "no-such-plan"),
        explain("a plan that is cut off", *SIZE, "--plan", "cut-plan"),
        explain("a plan of a newer jetvit", *SIZE, "--plan", "newer-plan"),
        explain("a plan with a word that is no choice", *SIZE, "--plan", "odd-plan"),
        explain("a folder without a plan", *SIZE, "--plan", "empty"),
        explain("a plan of another model", *SIZE, "--plan", "other-plan"),
        BadInput("the same, to write a file", ("optimize", MODEL, *SIZE, "--plan", "other-plan", "-o", "fast.pt2")),
    ),
    "Outputs": (
        BadInput("a file that exists", ("optimize", MODEL, *SIZE, "-o", "old.pt2")),
        BadInput("a file of another kind", ("optimize", MODEL, *SIZE, "-o", "fast.safetensors")),
        explain("a folder that is not there", *SIZE, "--html", "pages/page.html"),
        explain("a folder in the place of a file", *SIZE, "--html", "photos"),
        calibrate("a plan that exists", *PHOTOS, "-o", "plan"),
        calibrate("a folder with other files", *PHOTOS, "-o", "photos"),
        calibrate("a plan in the place of a file", *PHOTOS, "-o", "my_models.py"),
        BadInput(
            "a folder that the user may not write to",
            ("calibrate", MODEL, *SIZE, *PHOTOS, "-o", "read-only/plan"),
            unwritable="read-only",
        ),
        BadInput(
            "the same, for a file",
            ("optimize", MODEL, *SIZE, "-o", "read-only/fast.pt2"),
            unwritable="read-only",
        ),
        BadInput("a name that does not fit the target", ("export", MODEL, *SIZE, "--target", "onnx", "-o", "fast.pt2")),
    ),
    "Latency tables": (
        explain("a table that is not there", *SIZE, "--table", "h200.csv"),
        explain("a table that is something else", *SIZE, "--table", "my_models.py"),
        explain("a table without rows", *SIZE, "--table", "empty.csv"),
        calibrate("a dtype of a table, and no table", *PHOTOS, *TO, "--table-dtype", "bfloat16"),
        BadInput("a predictor of a table that is not there", ("fit", "h200.csv")),
        BadInput("rows for a file that is no table", ("measure", "--models", "ViT-Ti", "-o", "notes.txt")),
    ),
    "Tasks": (
        BadInput("an unknown task", ("search", MODEL, "--data", "photos", "--task", "detection", *TO)),
        BadInput("how many classes is missing", ("search", MODEL, "--data", "photos", "--task", "segmentation", *TO)),
        BadInput(
            "labels are missing",
            ("search", MODEL, *SIZE, "--data", "photos", "--task", "segmentation", "--classes", "3", *TO),
        ),
        BadInput(
            "a choice that is none",
            ("search", MODEL, "--data", "photos", "--task", "features", "--choices", "windows 8", *TO),
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the commands and write or check the page; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is behind")
    args = parser.parse_args(arguments)
    return write_page(PAGE, page(), args.check)


def page() -> str:
    """Run all commands, and return the page."""
    lines = [INTRO.format(count=sum(map(len, SECTIONS.values())))]
    with bad_files():
        for title, inputs in SECTIONS.items():
            lines += [f"\n## {title}\n", *(entry(each, run(each)) for each in inputs)]
    return "\n".join(lines)


def entry(each: BadInput, refusal: Refusal) -> str:
    """Return what the page says of one command."""
    command = shlex.join(("jetvit", *each.words))
    return f"**{each.what}** (exit status {refusal.status})\n\n```console\n$ {command}\n{refusal.message}\n```\n"


def run(each: BadInput) -> Refusal:
    """Run one command in the folder of `bad_files`.

    Raises:
        AssertionError: it shows a traceback, prints a result, or leaves or changes a file.
    """
    before = sorted(Path().rglob("*"))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _refusing_to_write(each.unwritable):
        status = jetvit(each.words)
    message = _general(err.getvalue())
    assert "Traceback" not in message, message
    assert status, f"{each.words} is not refused"
    assert not out.getvalue(), f"{each.words} prints a result: {out.getvalue()}"
    left = [path for path in Path().rglob("*") if path not in before and "__pycache__" not in path.parts]
    assert not left, f"{each.words} leaves {left}"
    return Refusal(status, message)


def _general(text: str) -> str:
    """A message without paths, without the versions of libraries, and without the help that `jetvit` alone prints."""
    text = re.sub(r"usage: jetvit COMMAND.*\n(?=error: )", "(the help)\n", text, flags=re.DOTALL)
    text = re.sub(r"\b(timm|transformers) \d+\.\S+", r"\1 VERSION", text)
    return text.replace(str(Path.cwd()), ".").strip()


@contextlib.contextmanager
def _refusing_to_write(folder: str) -> Iterator[None]:
    """Within it `os.access` says that `folder` is read-only: to root, who may run this, no folder is."""
    real = os.access

    def access(path: Any, mode: int, **options: Any) -> bool:
        is_denied = folder and mode & os.W_OK and Path(path).resolve() == Path(folder).resolve()
        return not is_denied and real(path, mode, **options)

    with patch("os.access", access):
        yield


@contextlib.contextmanager
def bad_files() -> Iterator[None]:
    """Within it the current folder is a new one with files of all sorts, and the hub is offline."""
    constants = importlib.import_module("huggingface_hub.constants")
    before, path = Path.cwd(), list(sys.path)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        stack.callback(os.chdir, before)
        stack.callback(sys.path.__setitem__, slice(None), path)
        stack.enter_context(patch.dict(sys.modules))
        sys.modules.pop("my_models", None)  # of another folder
        stack.enter_context(patch.object(torch.cuda, "device_count", lambda: 0))
        stack.enter_context(patch.object(constants, "HF_HUB_OFFLINE", True))
        stack.enter_context(patch.object(constants, "HF_HUB_CACHE", str(Path(name).resolve() / "hub")))
        os.chdir(name)
        _write_files()
        yield


def _write_files() -> None:
    Path("my_models.py").write_text(MODELS, encoding="utf-8")
    for folder in ("photos", "single", "broken", "text", "empty", "read-only", "loop"):
        Path(folder).mkdir()
    for index in range(4):
        Image.new("RGB", (64, 64), (40 * index, 90, 120)).save(f"photos/{index}.png")
    Image.new("RGB", (64, 64)).save("single/0.png")
    for index in range(2):
        Path(f"broken/{index}.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(40))
    Path("text/notes.jpg").write_text("my notes")
    Path("notes.txt").write_text("my notes")
    Path("loop/loop").symlink_to(Path("loop").absolute(), target_is_directory=True)
    _write_models()
    _write_weights()
    _write_plans()


def _write_models() -> None:
    for name, config in {
        "no-config": None,
        "cut-config": '{"model_type": "vit", "hidden',
        "no-weights": '{"model_type": "vit", "architectures": ["ViTModel"]}',
        "unknown-architecture": '{"model_type": "transformer_of_tomorrow"}',
    }.items():
        Path(name).mkdir()
        if config is not None:
            Path(name, "config.json").write_text(config)
    for name in ("text.pt2", "text.onnx", "old.pt2"):
        Path(name).write_text("my notes")


class _Code:
    """Unpickled it would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


def _write_weights() -> None:
    state = load_small_vit().state_dict()
    first = next(iter(state))
    save_file(state, "whole.safetensors")
    whole = Path("whole.safetensors").read_bytes()
    Path("whole.safetensors").unlink()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("text.safetensors").write_text("my notes")
    Path("weights.npz").write_bytes(b"PK")
    torch.save({"weight": torch.zeros(1)}, "code.pt")
    Path("code.pt").write_bytes(pickle.dumps({"weight": _Code()}))
    save_file({"conv1.weight": torch.zeros(4, 3, 3, 3), "fc.bias": torch.zeros(4)}, "other.safetensors")
    save_file(state | {first: torch.zeros(3, 3)}, "narrow.safetensors")
    save_file({key: torch.full_like(value, torch.nan) for key, value in state.items()}, "nan.safetensors")


def _write_plans() -> None:
    sites = find_attention(load_small_vit(), torch.zeros(1, 3, 64, 64))
    entry = SitePlan(sites[0].name, Choice("window", window=(2, 2)))
    Plan(sites=(entry,), fingerprint=Fingerprint.of(sites), size=(64, 64)).save("plan")
    text = Path("plan/plan.json").read_text(encoding="utf-8")
    document = json.loads(text)
    other = json.loads(text.replace(f'"{sites[0].name}"', '"encoder.layer.0.attention"'))
    odd = json.loads(text.replace('"window"', '"windows"'))
    for name, content in {
        "cut-plan": text[: len(text) // 2],
        "newer-plan": json.dumps(document | {"schema_version": 7}),
        "other-plan": json.dumps(other),
        "odd-plan": json.dumps(odd),
    }.items():
        Path(name).mkdir()
        Path(name, "plan.json").write_text(content, encoding="utf-8")
    from jetvit.cost_model.measuring.table import COLUMNS

    Path("empty.csv").write_text(",".join(COLUMNS) + "\n")


if __name__ == "__main__":
    sys.exit(main())
