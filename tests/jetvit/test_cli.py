"""The command line, as a stranger uses it: every command, every wrong use, and what is left on disk afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from jetvit.api import find_attention
from jetvit.cli import main
from jetvit.commands.calibrate import told_of_refit
from jetvit.commands.requests import ModelRequest, Normalisation
from jetvit.commands.subject import load_subject
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.files import load_exported
from jetvit.models.image_files import ImageFiles
from jetvit.models.images import synthetic_images
from jetvit.models.load import load_model
from jetvit.patterns.errors import InputError
from jetvit.search.calibration import model_latency
from jetvit.search.calibration.trial import Trial
from tests.search.calibration.test_calibrate import device_costs, on_gpu
from tests.search.calibration.test_refit import make_windows_faster
from tests.zoo import CASES
from tests.zoo.quick import sweep

ROOT = Path(__file__).parents[2]
TINY = ("timm:vit_tiny_patch16_224", *(f"--model-arg={each}" for each in ("depth=2", "embed_dim=32", "num_heads=2")))
SIZE = ("--size", "64x96")
HERE = "tests.jetvit.test_cli"


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process; whatever it does, it shows no traceback."""

    def call(*argv: object) -> Outcome:
        status = main([str(word) for word in argv])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture
def refused(run: Run) -> Run:
    """Runs a command line that is refused, in one error that says what, and prints no result.

    The machine of the tests may be busy, as a command that measures then says.
    """

    def call(*argv: object, status: int = 1) -> Outcome:
        outcome = run(*argv)
        assert outcome.status == status
        assert outcome.out == ""
        beside = ("note: ", "  ", "warning: this machine is too busy")
        lines = [line for line in outcome.err.splitlines() if not line.startswith(beside)]
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        return outcome

    return call


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    save_pictures(folder, 4)
    return folder


def save_pictures(folder: Path, count: int) -> None:
    for index, picture in enumerate(synthetic_images(count, (64, 96))):
        pixels = (255 * picture).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for TINY: a window in the second of its two blocks."""
    model = load_model("timm:vit_tiny_patch16_224", model_args={"depth": 2, "embed_dim": 32, "num_heads": 2}).model
    sites = find_attention(model, torch.zeros(1, 3, 64, 96))
    folder = tmp_path_factory.mktemp("plans") / "plan"
    entry = SitePlan(sites[1].name, Choice("window", window=(2, 3)))
    Plan(sites=(entry,), fingerprint=Fingerprint.of(sites), size=(64, 96)).save(folder)
    return folder


# Models that a stranger may bring


def vit() -> nn.Module:
    return CASES["sdpa"].build()


def nan_vit() -> nn.Module:
    model = vit()
    with torch.no_grad():
        model.get_parameter("norm.weight")[3] = float("nan")
    return model


class Undefined(nn.Module):
    """Yields no number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 0 * 0


def nan_output() -> nn.Module:
    return nn.Sequential(vit(), Undefined()).eval()


class Branches(nn.Module):
    """Does another thing at the size that it was trained at, as models do that resample position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = vit()

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.vit(image)
        return tokens if image.shape[2] // 8 == 4 else 2 * tokens


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vit = vit()
        self.bias = nn.Parameter(torch.zeros(25, 32))

    def forward(self, image: Tensor) -> Tensor:
        return self.vit(image) + self.bias


# Help


def test_help_lists_the_commands_that_exist(run: Run):
    outcome = run("--help")
    assert outcome.status == 0
    for command in (
        "explain",
        "calibrate",
        "search",
        "check",
        "optimize",
        "export",
        "bench",
        "measure",
        "fit",
        "completion",
        "demo",
    ):
        assert f"\n  {command} " in outcome.out
        text = run(command, "--help").out
        assert f"usage: jetvit {command}" in text
        assert f"jetvit {command}" in text.partition("example")[2]
    assert run("export").status == 2
    assert run("--version").out.startswith("jetvit ")


def test_no_command(run: Run):
    outcome = run()
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.endswith("error: name a command\n")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["explian", *TINY], "there is no command 'explian'\n  do: did you mean 'explain'?"),
        (["explain", *TINY, "--dynamc"], "jetvit explain has no option '--dynamc'\n  do: did you mean '--dynamic'?"),
        (["check", *TINY, "--plan", "p", "--image=d"], "did you mean '--images'?"),
        (["explain", *TINY, "--siz=64x96"], "did you mean '--size'?"),
        (["explain", *TINY, "more"], "jetvit explain takes no further word, and 'more' is one"),
        (["explain"], "the following arguments are required: MODEL"),
        (["explain", *TINY, "--json", "--html", "f"], "argument --html: not allowed with argument --json"),
        (["explain", *TINY, "--size", "64"], "'64' is no image size"),
        (["explain", *TINY, "--batch", "0"], "'0' is no whole number of 1 or more"),
        (["explain", *TINY, "--dtype", "float8"], "'float8' is none of float32, bfloat16, float16"),
        (["bench", *TINY, "--rounds", "2"], "'2' is no whole number of 5 or more"),
        (["calibrate", *TINY, "-o", "p"], "the following arguments are required: --images"),
        (["explain", *TINY, "--size", "-64x96"], "argument --size: '-64x96' is no image size: a side is -64 pixels"),
        (["explain", *TINY, "--size", "640000x960000"], "'640000x960000' is too large: it is 6.14e+11 pixels"),
        (["explain", *TINY, "--batch", "-2"], "'-2' is no whole number of 1 or more"),
        (["calibrate", *TINY, "--images=d", "-o", "p", "--budget", "60%"], "'60%' is no budget"),
        (["calibrate", *TINY, "--images=d", "-o", "p", "--max-drift", "nan"], "'nan' is no drift"),
        (["check", *TINY, "--images=d", "--plan", "p", "--mean", "0.5"], "'0.5' is not one number a channel"),
    ],
)
def test_wrong_usage(refused: Run, argv: list[str], words: str):
    assert words in refused(*argv, status=2).err


# explain


def test_explain(run: Run, plan: Path, tmp_path: Path):
    outcome = run("explain", *TINY, *SIZE)
    assert outcome.status == 0
    assert outcome.out.startswith("timm:vit_tiny_patch16_224\ninput x [1, 3, 64, 96] float32\n")
    assert "2 attention sites: 2 can be rewritten" in outcome.out
    assert outcome.err == "note: random weights: latency is real, quality is not\n"
    assert "The plan changes 1 of 2 sites: 1 window 2x3" in run("explain", *TINY, *SIZE, "--plan", plan).out
    report = json.loads(run("explain", *TINY, *SIZE, "--plan", plan, "--json").out)
    assert (report["model"], report["totals"]["changed"]) == ("timm:vit_tiny_patch16_224", 1)
    page = tmp_path / "report.html"
    assert run("explain", *TINY, *SIZE, "--html", page).out == f"wrote {page}\n"
    assert page.read_text().startswith("<!")


def test_explain_takes_every_kind_of_model(run: Run, hf_folder: Callable[..., Path]):
    folder = hf_folder("DINOv3")
    assert "2 can be rewritten" in run("explain", f"hf:{folder}", "--size", "32x48").out
    outcome = run("explain", f"{HERE}:vit", "--size", "32x48", "--batch", "2")
    assert "input image [2, 3, 32, 48]" in outcome.out
    assert outcome.err == f"note: ran your code: {HERE}:vit\n"


def test_explain_with_open_sizes(run: Run):
    outcome = run("explain", *TINY, *SIZE, "--dynamic")
    assert "input x [B, 3, H, W] float32" in outcome.out
    assert "H//16 × W//16" in outcome.out


@pytest.mark.parametrize("model", ["Branches", "OneSize"])
def test_a_model_without_open_sizes_is_refused_with_the_reason(refused: Run, run: Run, model: str):
    outcome = refused("explain", f"{HERE}:{model}", "--size", "32x48", "--dynamic")
    reason = "torch.export followed its code for" if model == "Branches" else "the model takes no other image size"
    assert reason in outcome.err
    assert "leave --dynamic out" in outcome.err
    assert run("explain", f"{HERE}:{model}", "--size", "32x48").status == 0


def test_models_that_resample_positions_have_open_sizes_but_for_their_own(
    run: Run, refused: Run, hf_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    model = f"hf:{hf_folder('Dinov2')}"
    capsys.readouterr()
    outcome = refused("explain", model, "--dynamic")
    assert "followed its code for `height == width` alone, which is false for 42×56" in outcome.err
    assert "such as --size 42x56" in outcome.err
    assert "[B, 3, H, W]" in run("explain", model, "--dynamic", "--size", "42x56").out


def test_depth_anything_has_no_open_sizes(
    refused: Run, hf_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    model = f"hf:{hf_folder('DepthAnything')}"
    capsys.readouterr()
    outcome = refused("optimize", model, "--size", "42x56", "--dynamic", "-o", tmp_path / "never.pt2")
    assert "followed its code for `14*((width//14)) == 56` alone" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["vit_tiny_patch16_224"], "'vit_tiny_patch16_224' names no model"),
        (["timm:vit_tiny_patch16_244"], "has no model 'vit_tiny_patch16_244'"),
        (["hf:no-such-folder"], "no-such-folder is no HuggingFace folder"),
        (["no-such.pt2"], "no file no-such.pt2"),
        (["no-such.onnx"], "no file no-such.onnx"),
        ([f"{HERE}:vat"], f"{HERE} has no function vat"),
        ([f"{HERE}:vit"], f"the image size of {HERE}:vit is not known"),
        ([*TINY, "--weights", "none.safetensors"], "no weight file none.safetensors"),
        ([*TINY, "--model-arg", "depth"], "cannot read the model argument 'depth'"),
        ([*TINY, "--device", "gpu"], "'gpu' is no device"),
        ([*TINY, "--size", "65x96"], "use --size 64x96 or 80x96"),
        ([*TINY, *SIZE, "--plan", "no-such-plan"], "there is no plan"),
        ([*TINY, *SIZE, "--html", "no-such-folder/r.html"], "mkdir -p"),
    ],
)
def test_what_cannot_be_loaded(refused: Run, argv: list[str], words: str):
    assert words in refused("explain", *argv).err


def test_a_plan_of_another_model(refused: Run, plan: Path, tmp_path: Path):
    other = (*TINY[:-1], "--model-arg=num_heads=4", *SIZE, "--plan", plan)
    outcome = refused("explain", *other)
    assert "the plan is for another model" in outcome.err
    assert "heads" in outcome.err
    assert "another model" in refused("optimize", *other, "-o", tmp_path / "o.pt2").err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "plan.json").write_text("{")
    assert "the plan cannot be read" in refused("explain", *TINY, *SIZE, "--plan", tmp_path).err


# calibrate and check


def test_calibrate_then_check(run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_latency, "steadily", lambda measure: (measure()[0], []))  # whatever else runs here
    out = tmp_path / "new" / "plan"
    outcome = run("calibrate", *TINY, *SIZE, "--images", pictures, "-o", out)
    assert outcome.status == 0
    assert "Drift of the model's output, all changes together" in outcome.out
    assert "on 2 images of the selection" in outcome.out
    assert "on 2 images held out" in outcome.out
    assert re.search(
        r"The full model takes [\d.]+ ms a batch of 1, not compiled, and the plan [\d.]+ ms\.", outcome.out
    )
    assert "The weights are random: the speed is real, the quality is not." in outcome.out
    assert outcome.out.endswith(f"wrote the plan to {out}\n")
    saved = Plan.load(out)
    assert saved.size == (64, 96)
    assert saved.provenance["images"] == pictures.name
    assert str(tmp_path) not in (out / "plan.json").read_text()
    outcome = run("check", *TINY, *SIZE, "--images", pictures, "--plan", out, "--batch", "3")
    assert "over 3 images of 64×96" in outcome.out
    assert "at most 0.35" in outcome.out
    assert "note: 1 of 4 images left out" in outcome.err


def test_check_names_the_worst_image(run: Run, plan: Path, pictures: Path):
    report = json.loads(run("check", *TINY, *SIZE, "--images", pictures, "--plan", plan, "--json").out)
    assert report["images"] == 4
    assert 0 < report["agreement"] <= 1
    assert set(report["drift_per_image"]) == {f"{index}.png" for index in range(4)}
    assert report["drift_per_image"][report["worst_image"]] == max(report["drift_per_image"].values())
    text = run("check", *TINY, *SIZE, "--images", pictures, "--plan", plan).out
    assert f"on {report['worst_image']}" in text


def test_the_normalisation_is_said_or_given(run: Run, plan: Path, pictures: Path, tmp_path: Path):
    program = tmp_path / "m.pt2"
    assert run("optimize", *TINY, *SIZE, "-o", program).status == 0
    argv = ("check", program, "--images", pictures, "--plan", plan, "--limit", "2")
    assert "ImageNet's values are taken; see --mean, --std" in run(*argv).err
    outcome = run(*argv, "--mean", ".5,.5,.5", "--std", ".5,.5,.5")
    assert outcome.err == "note: 2 of 4 images not read: the limit is 2\n"


def test_calibrate_in_json(run: Run, pictures: Path, tmp_path: Path):
    argv = ("calibrate", *TINY, *SIZE, "--images", pictures, "-o", tmp_path / "p", "--limit", "4", "--budget", "1000ms")
    outcome = run(*argv, "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert (report["plan"]["images_selection"], report["plan"]["images_held_out"]) == (2, 2)


def test_calibrate_tells_what_its_refit_is_worth(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    save_pictures(photos, 9)
    make_windows_faster(monkeypatch)
    argv = ("calibrate", *TINY, "--size", "160x160", "--images", photos, "--max-drift", "99")
    outcome = run(*argv, "-o", tmp_path / "plan")
    assert outcome.status == 0, outcome.err
    plan = Plan.load(tmp_path / "plan")
    assert plan.provenance["images_fitted"] == 4
    assert "A refit on 4 images gains nothing, and all weights stay" in outcome.out  # windows hardly change this model
    plan = replace(plan, weights={"a": torch.ones(1), "b": torch.ones(1)})
    assert "2 weights of the plan were fitted on 4 images: on the held-out ones the drift is 0." in told_of_refit(plan)
    assert run("check", *TINY, "--size", "160x160", "--plan", tmp_path / "plan", "--images", photos).status == 0
    outcome = run(*argv, "--no-refit", "-o", tmp_path / "plain")
    assert "refitted" not in outcome.out + outcome.err
    assert not Plan.load(tmp_path / "plain").weights


def test_a_calibration_that_was_killed_resumes(
    run: Run, refused: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    weights, out = tmp_path / "vit.safetensors", tmp_path / "plan"
    model = load_model("timm:vit_tiny_patch16_224", model_args={"depth": 2, "embed_dim": 32, "num_heads": 2}).model
    save_file(model.state_dict(), weights)
    argv = ("calibrate", *TINY, "--size", "160x160", "--images", pictures, "-o", out)
    argv_of = (*argv, "--weights", weights)

    def kill(self: Trial, *args: Any, **kwargs: Any) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "joint", kill)
        outcome = run(*argv_of, "--max-drift", "99")
    assert (outcome.status, out.exists()) == (130, False)
    for options, words in (
        (("--max-drift", "0.1"), "max_drift is 0.1, and was 99.0"),
        (("--max-drift", "99", "--limit", "2"), "images is "),
        (("--max-drift", "99", "--budget", "0.9"), 'budget is "0.9", and was null'),
    ):
        message = refused(*argv_of, *options).err
        assert f"error: the folder holds another calibration\n  why: {words}"[:60] in message, message
    outcome = run(*argv_of, "--max-drift", "99")
    assert outcome.status == 0
    assert f"note: the calibration in {out}.run resumes: " in outcome.err
    assert "4 of 4 drifts of single choices, 0 drifts of whole plans and " in outcome.err
    words = "note: not tried, because the window holds the whole grid: "
    assert f"{words}window 16x16 at 2 of 2 attentions, window 32x32 at 2 of 2 attentions\n" in outcome.err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["plan", "vit.safetensors"]


def test_the_measurements_of_calibrate_have_a_folder_of_their_own(run: Run, pictures: Path, tmp_path: Path):
    argv = ("calibrate", *TINY, *SIZE, "--images", pictures, "-o", tmp_path / "plan", "--folder", tmp_path / "plan")
    outcome = run(*argv)
    assert outcome.status == 2
    assert "--folder and --out name the same folder" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_calibrate_for_another_device(
    run: Run, refused: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = load_model("timm:vit_tiny_patch16_224", model_args={"depth": 2, "embed_dim": 32, "num_heads": 2}).model
    costs = device_costs(model, ((torch.zeros(1, 3, 64, 96),), {}), on_gpu)
    monkeypatch.setattr("jetvit.commands.calibrate.load_table", {"h100.csv": costs}.__getitem__)
    argv = ("calibrate", *TINY, *SIZE, "--images", pictures, "--table", "h100.csv")
    outcome = run(*argv, "--table-dtype", "bfloat16", "-o", tmp_path / "plan")
    assert outcome.status == 0, outcome.err
    assert "On NVIDIA H100 80GB HBM3 with 132 multiprocessors the full model takes about " in outcome.out
    assert "estimates, for that device is not here." in outcome.out
    made = Plan.load(tmp_path / "plan").provenance
    assert made["confirmed"] is False
    assert made["estimated_plan_ms"] <= made["estimated_full_ms"]
    outcome = refused(*argv, "-o", tmp_path / "other")
    assert "132 multiprocessors does not know full attention at blocks.0.attn" in outcome.err
    assert "no full float32 was measured" in outcome.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([*TINY, *SIZE, "--table", "no-such-table"], "no latency table no-such-table"),
        ([*TINY, *SIZE, "--table-dtype", "bfloat16"], "name the table as well: --table FILE"),
        ([f"{HERE}:nan_vit", *SIZE], "the weight norm.weight holds NaN or Inf"),
        ([f"{HERE}:nan_output", *SIZE], "the model's output on batch 0 is not finite"),
        ([*TINY, *SIZE, "--images", "no-such-folder"], "no image folder no-such-folder"),
        ([*TINY, *SIZE, "--limit", "1"], "one batch of images cannot be halved"),
        ([*TINY, *SIZE, "--batch", "9"], "4 images cannot fill a batch of 9"),
        ([*TINY, *SIZE, "--output", "depth"], "there is no output 'depth'"),
        (["timm:resnet10t", "--size", "64x64"], "no full attention that can be rewritten"),
    ],
)
def test_calibrate_refuses_and_leaves_nothing(
    refused: Run, pictures: Path, tmp_path: Path, argv: list[str], words: str
):
    images = [] if "--images" in argv else ["--images", pictures]
    assert words in refused("calibrate", *argv, *images, "-o", tmp_path / "plan").err
    assert list(tmp_path.iterdir()) == []


def test_a_nan_in_a_weight_file(refused: Run, pictures: Path, tmp_path: Path):
    save_file({"head.weight": torch.tensor([float("nan")])}, tmp_path / "w.safetensors")
    argv = ("--images", pictures, "-o", tmp_path / "plan", "--weights", tmp_path / "w.safetensors")
    assert "the weight head.weight holds NaN or Inf" in refused("calibrate", *TINY, *argv).err


def test_an_image_that_is_none(refused: Run, plan: Path, tmp_path: Path):
    (tmp_path / "broken.jpg").write_text("no picture")
    outcome = refused("check", *TINY, *SIZE, "--images", tmp_path, "--plan", plan)
    assert f"no image in {tmp_path} can be read" in outcome.err
    assert "broken.jpg (it is in no format that Pillow reads)" in outcome.err
    (tmp_path / "broken.jpg").rename(tmp_path / "notes.txt")
    assert f"no image in {tmp_path}" in refused("check", *TINY, *SIZE, "--images", tmp_path, "--plan", plan).err


def test_unreadable_images_are_named_before_the_model_is_loaded(
    run: Run, refused: Run, plan: Path, pictures: Path, tmp_path: Path
):
    for file in pictures.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "0.png").write_bytes((pictures / "0.png").read_bytes()[:99])
    argv = ("--images", tmp_path, "--plan", plan)
    outcome = run("check", *TINY, *SIZE, *argv)
    assert outcome.status == 0
    assert "warning: skipped 1 image that cannot be read: 0.png (" in outcome.err
    assert "over 3 images" in outcome.out
    for command in ("check", "bench"):
        assert "1 image cannot be read" in refused(command, "timm:no_such_model", *SIZE, *argv, "--strict").err


def test_a_plan_cannot_take_the_place_of_a_file(refused: Run, pictures: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "plan"):
        assert "is a file" in refused("calibrate", *TINY, *SIZE, "--images", pictures, "-o", out).err
    assert (tmp_path / "file").read_text() == "mine"


def test_an_interrupt_leaves_nothing(run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jetvit.commands.calibrate.calibrate", interrupt)
    monkeypatch.setattr("torch.export.save", interrupt)
    for argv in (("calibrate", *TINY, *SIZE, "--images", pictures), ("optimize", *TINY, *SIZE)):
        outcome = run(*argv, "-o", tmp_path / "out.pt2")
        assert outcome.status == 130
        assert outcome.err.endswith("\ninterrupted; nothing was left half-written\n")
        assert list(tmp_path.iterdir()) == []


def test_a_request_to_end_says_what_an_interrupt_says(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jetvit.commands.calibrate.calibrate", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    outcome = run("calibrate", *TINY, *SIZE, "--images", pictures, "-o", tmp_path / "plan")
    assert (outcome.status, outcome.out) == (143, "")
    assert outcome.err.endswith("\nended by SIGTERM; nothing was left half-written\n")
    assert list(tmp_path.iterdir()) == []


def test_a_factory_in_the_current_folder_is_found_by_a_console_script(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "jetvit").write_text("import sys; from jetvit.cli import main; sys.exit(main())")
    (tmp_path / "mine.py").write_text("import torch\ndef make(): return torch.nn.Linear(3, 3)")
    command = [sys.executable, tmp_path / "bin" / "jetvit", "explain", "mine:make", "--size", "8x3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "ran your code: mine:make" in found.stderr


# optimize


def test_optimize_writes_a_file_that_loads_elsewhere(run: Run, plan: Path, tmp_path: Path):
    out = tmp_path / "fast.pt2"
    outcome = run("optimize", *TINY, *SIZE, "--plan", plan, "-o", out)
    assert outcome.status == 0
    assert "by the plan: 1 window 2x3, 1 full" in outcome.out
    assert [file.name for file in tmp_path.iterdir()] == ["fast.pt2"]
    code = (
        "import sys, jetvit, torch; module = torch.export.load(sys.argv[1]).module();"
        "print(*module(torch.zeros(1, 3, 64, 96)).shape)"
    )
    fresh = subprocess.run([sys.executable, "-c", code, out], cwd=ROOT, capture_output=True, text=True, check=True)
    assert fresh.stdout == "1 1000\n"
    again = run("optimize", out, "--plan", plan, "-o", tmp_path / "again.pt2")
    assert "1 attention site, 1 rewritten already" in again.out
    refusal = run("bench", out, "--plan", plan)
    assert refusal.status == 1
    assert "the program was rewritten by jetvit already" in refusal.err


def test_without_a_plan_only_exact_rewrites(run: Run, tmp_path: Path):
    out = tmp_path / "exact.pt2"
    outcome = run("optimize", *TINY, *SIZE, "-o", out)
    assert "no plan was given: every site keeps full attention, and only exact rewrites were made" in outcome.out
    model = load_model("timm:vit_tiny_patch16_224", model_args={"depth": 2, "embed_dim": 32, "num_heads": 2}).model
    assert isinstance(model, nn.Module)
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(load_exported(out).module()(image), model(image))


@pytest.mark.slow
def test_open_sizes_stay_open_from_file_to_file(run: Run, plan: Path, tmp_path: Path, refused: Run):
    first, second = tmp_path / "first.pt2", tmp_path / "second.pt2"
    assert run("optimize", *TINY, *SIZE, "--dynamic", "-o", first).status == 0
    assert run("optimize", first, "--plan", plan, "-o", second).status == 0
    module = load_exported(second).module()
    for shape in ((1, 3, 64, 64), (3, 3, 32, 128)):
        assert module(torch.zeros(shape)).shape == (shape[0], 1000)
    fixed = tmp_path / "fixed.pt2"
    assert run("optimize", *TINY, *SIZE, "-o", fixed).status == 0
    for option in (("--size", "32x32"), ("--batch", "2"), ("--dynamic",)):
        outcome = refused("explain", fixed, *option)
        assert f"{option[0]} cannot change an exported program" in outcome.err
        assert "it takes images of 1×3×64×96" in outcome.err


@pytest.mark.parametrize("family", sweep(["Dinov2", "ViT", "DepthAnything"], quick=["Dinov2", "ViT"]))
def test_dataclass_outputs_become_dicts(run: Run, hf_folder: Callable[..., Path], tmp_path: Path, family: str):
    folder = hf_folder(family)
    out = tmp_path / "m.pt2"
    assert run("optimize", f"hf:{folder}", "-o", out).status == 0
    loaded = load_model(f"hf:{folder}")
    assert isinstance(loaded.model, nn.Module)
    assert loaded.image_size is not None
    args, kwargs = loaded.inputs(torch.randn(1, 3, *loaded.image_size))
    program = load_exported(out)
    found, expected = program.module()(*args, **kwargs), loaded.model(*args, **kwargs)
    assert type(found) is dict
    assert list(found) == list(expected.keys())
    torch.testing.assert_close(found, dict(expected))
    names = {name for name in program.state_dict if "merged" not in name}
    assert names <= set(loaded.model.state_dict())


def test_optimize_refuses(refused: Run, plan: Path, tmp_path: Path):
    assert "jetvit export" in refused("optimize", *TINY, *SIZE, "-o", tmp_path / "m.so").err
    assert "ends in .pt2" in refused("optimize", *TINY, *SIZE, "-o", tmp_path / "m").err
    assert "mkdir -p" in refused("optimize", *TINY, *SIZE, "-o", tmp_path / "none" / "m.pt2").err
    old = tmp_path / "old.pt2"
    old.write_text("old")
    refused("optimize", *TINY, "--size", "65x96", "-o", old)
    refused("explain", old)
    assert [file.name for file in tmp_path.iterdir()] == ["old.pt2"]
    assert old.read_text() == "old"


# bench


def test_bench(run: Run, plan: Path, pictures: Path, tmp_path: Path):
    out = tmp_path / "bench.json"
    argv = ("bench", *TINY, *SIZE, "--plan", plan, "--images", pictures, "--rounds", "5", "-o", out)
    outcome = run(*argv)
    assert outcome.status == 0
    for words in ("eager, full", "compiled, full", "compiled, jetvit", "95 % interval", "drift of the plan", "random"):
        assert words in outcome.out
    report = json.loads(out.read_text())
    assert [len(column["samples_ms"]) for column in report["columns"]] == [5, 5, 5]
    assert report["choices"] == {"full": 1, "window 2x3": 1}
    assert report["quality"]["images"] == 4


def test_bench_refuses(refused: Run, pictures: Path, tmp_path: Path):
    assert "--plan PLAN" in refused("bench", *TINY, *SIZE, "--images", pictures).err
    assert "mkdir -p" in refused("bench", *TINY, *SIZE, "-o", tmp_path / "none" / "b.json").err


# The process


def process(*argv: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jetvit", *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


def test_python_m_is_the_command():
    outcome = process("explain", *TINY, "--size", "65x96")
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr.endswith("do: use --size 64x96 or 80x96\n")
    assert "Traceback" not in outcome.stderr


def test_results_are_all_that_is_piped():
    outcome = process("explain", *TINY, *SIZE, "--json", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert outcome.returncode == 0
    assert json.loads(outcome.stdout)["totals"]["found"] == 2


def test_an_error_that_nobody_expected(refused: Run, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("jetvit.commands.explain.load_subject", fail)
    assert "error: ZeroDivisionError: division by zero" in refused("explain", *TINY).err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]):
    for argv in (["--debug", "explain", "none.pt2"], ["explain", "none.pt2", "--debug"]):
        assert main(argv) == 1
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert "error: no file none.pt2" in err


# --- models of other inputs -------------------------------------------------------------------------------------------


class OfBytes(nn.Module):
    """Scales the bytes of a picture itself."""

    def forward(self, image: Tensor) -> Tensor:
        return image.float() / 255


def test_bytes_of_a_picture_are_not_normalised(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    program = torch.export.export(OfBytes(), (torch.zeros(1, 3, 32, 48, dtype=torch.uint8),))
    torch.export.save(program, tmp_path / "bytes.pt2")
    subject = load_subject(ModelRequest(str(tmp_path / "bytes.pt2")))
    (drawn,), _ = subject.example()
    assert drawn.dtype is torch.uint8
    assert len(drawn.unique()) > 50
    pixels = torch.randint(0, 256, (32, 48, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / "a.png")
    files = ImageFiles.find(tmp_path / "photos")
    ((batch,), _), *_ = subject.batches(subject.images(files, Normalisation()), lambda *_: None)
    torch.testing.assert_close(batch[0], pixels.permute(2, 0, 1), rtol=0, atol=0)
    assert "from 0 to 255" in capsys.readouterr().err
    with pytest.raises(InputError, match="--mean and --std"):
        subject.images(files, Normalisation(mean=(0.5, 0.5, 0.5)))


@pytest.mark.parametrize("shape", [(1, 1, 32, 48), (1, 32, 48, 3)])
def test_other_layouts_of_images_are_refused(refused: Run, tmp_path: Path, shape: tuple[int, ...]):
    torch.export.save(torch.export.export(nn.ReLU(), (torch.zeros(shape),)), tmp_path / "m.pt2")
    outcome = refused("optimize", tmp_path / "m.pt2", "-o", tmp_path / "n.pt2")
    assert "takes no images of [batch, 3, height, width]" in outcome.err
    assert "×".join(map(str, shape)) in outcome.err
