"""`jetvit search` on shrunk real architectures, from files to a plan that every other command takes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from jetvit.api import find_attention
from jetvit.cli import main
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.cost_model.files.lock import locked
from jetvit.files import load_exported
from jetvit.models.images import synthetic_images
from jetvit.models.load import load_model
from jetvit.search.post_training.train import Training
from tests.passes.models import assert_close
from tests.search.fixed_latencies import fixed_latencies

TINY = ("--choices", "linear conv3,window 2", "--effort", "0.01", "--limit", "4")
SEGMENTATION = ("--task", "segmentation", "--classes", "2")
FEATURES = ("--task", "features", "--max-full", "2")
DEPTH = ("--task", "depth", "--dialect", "disparity", "--nearest", "0.1", "--farthest", "10", "--depth-scale", "0.001")
SIZES = {"DINOv3": "64x96", "DepthAnything": "42x56"}
PLAIN = "tests.jetvit.test_cli:vit", "--size", "32x48"


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def call(*argv: object) -> Outcome:
    """Run a command line in this process; whatever it does, it shows no traceback."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            status = main([str(word) for word in argv])
        except SystemExit as leave:  # wrong usage that only the command can tell
            status = int(str(leave.code))
    assert "Traceback" not in err.getvalue()
    return Outcome(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module", autouse=True)
def _latencies() -> Iterator[None]:
    with fixed_latencies():
        yield


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images of six films with labels and depths: four films in train, two in val."""
    folder = tmp_path_factory.mktemp("films")
    for number, picture in enumerate(synthetic_images(18, (64, 96))):
        part = folder / ("train" if number < 12 else "val")
        pixels = {
            "images": (255 * picture).byte().permute(1, 2, 0).numpy(),
            "labels": (picture[0] > 0.5).byte().numpy(),
            "depths": (1000 + 4000 * picture[0]).numpy().astype(np.uint16),
        }
        for kind, values in pixels.items():
            (part / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(part / kind / f"film{number // 3}_{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def models(hf_folder: Callable[..., Path], frozen_imports: None) -> Mapping[str, str]:
    """Shrunk HuggingFace folders by family, as MODEL."""
    return {family: f"hf:{hf_folder(family)}" for family in SIZES}


class Searched(NamedTuple):
    argv: tuple[object, ...]
    outcome: Outcome
    plan: Path


@pytest.fixture(scope="module")
def segmented(models: Mapping[str, str], films: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A search for segmentation, with its command line but for -o PLAN."""
    out = tmp_path_factory.mktemp("segmented") / "plan"
    model = (models["DINOv3"], "--size", SIZES["DINOv3"])
    argv = ("search", *model, "--data", films, *SEGMENTATION, *TINY, "--max-full", "1", "--select", "film1")
    outcome = call(*argv, "-o", out)
    assert outcome.status == 0, outcome.err
    return Searched(argv, outcome, out)


def taken_by_the_other_commands(family: str, model: str, plan: Path, images: Path, folder: Path) -> None:
    """`optimize`, `check` and `torch.compile` take a plan as it was saved, and make one model of it."""
    program, argv = folder / "out.pt2", (model, "--size", SIZES[family], "--plan", plan)
    assert call("optimize", *argv, "-o", program).status == 0
    assert call("check", *argv, "--images", images).status == 0
    loaded = load_model(model)
    assert isinstance(loaded.model, nn.Module)
    height, width = map(int, SIZES[family].split("x"))
    args, kwargs = loaded.inputs(torch.randn(1, 3, height, width))
    with torch.no_grad():
        rewritten = load_exported(program).module()(*args, **kwargs)
        compiled = torch.compile(loaded.model, backend="jetvit", options={"plan": str(plan), "inner": "eager"})
        for name, value in compiled(*args, **kwargs).items():
            assert_close(value, rewritten[name])


def test_segmentation_with_a_head_on_a_backbone(
    models: Mapping[str, str], films: Path, segmented: Searched, tmp_path: Path
):
    plan = Plan.load(segmented.plan)
    assert plan.weights
    assert plan.provenance["model"] == f"hf:{Path(models['DINOv3'][3:]).name}"
    assert plan.provenance["images"] == films.name
    assert str(segmented.plan.parent) not in (segmented.plan / "plan.json").read_text()
    report = call("explain", models["DINOv3"], "--size", SIZES["DINOv3"], "--plan", segmented.plan).out
    assert "Attention alone, summed over all sites: " in report
    taken_by_the_other_commands("DINOv3", models["DINOv3"], segmented.plan, films / "val" / "images", tmp_path)


# A quick run searches for features of this model, and for segmentation with a head.
@pytest.mark.slow
def test_depth_by_the_head_of_the_model(models: Mapping[str, str], films: Path, tmp_path: Path):
    model, out = models["DepthAnything"], tmp_path / "plan"
    argv = ("search", model, "--size", SIZES["DepthAnything"], "--data", films, *DEPTH, "--head", "model", *TINY)
    outcome = call(*argv, "--choices", "linear conv3", "--max-full", "1", "-o", out)
    assert outcome.status == 0, outcome.err
    assert "δ1 on 4 test images" in outcome.out
    assert "head.safetensors" not in outcome.out
    assert len(Plan.load(out).provenance["taps"]) == 4
    taken_by_the_other_commands("DepthAnything", model, out, films / "val" / "images", tmp_path)


@pytest.mark.slow
def test_features_of_a_model_with_a_head(models: Mapping[str, str], films: Path, tmp_path: Path):
    argv = ("search", models["DepthAnything"], "--size", SIZES["DepthAnything"], "--data", films, *FEATURES, *TINY)
    outcome = call(*argv, "--choices", "window 2", "--max-full", "0", "-o", tmp_path / "plan")
    assert outcome.status == 0, outcome.err
    assert "explained variation on 4 test images" in outcome.out
    assert "  control" not in outcome.out
    plan = Plan.load(tmp_path / "plan")
    assert len(plan.provenance["taps"]) == 4
    assert all(site.choice.kind != "full" for site in plan.sites)


def test_what_is_printed(films: Path, segmented: Searched):
    number, run = r"[+-]?\d\.\d{4}", f"{segmented.plan}.run"
    for line in (
        r"2 attentions: \d .*",
        r"[\d.]+ → [\d.]+ ms a batch of 1 on .*, by what single attentions take: [\d.]+× as fast",
        r"[\d.]+ → [\d.]+ ms as whole models, not compiled: [\d.]+× as fast \(95 % interval [\d.]+ to [\d.]+\)",
        f"mIoU on 4 test images of {films.name}, seed 0, with 95 % intervals over images",
        rf"  original +{number}   \[{number}, {number}\]",
        rf"  control +{number}   \[{number}, {number}\]  the original with the same training on the task",
        rf"  plan − original +{number}  \[{number}, {number}\]  (not shown to be )?non-inferior at margin 0.005",
        rf"  plan − control +{number}  \[{number}, {number}\]  (not shown to be )?non-inferior at margin 0.005",
        "mIoU on 3 images, which the plan was chosen by, with the weights that all paths share",
        rf"  random +{number}   [\d.]+ ms",
        re.escape(f"the head that was trained on the original is in {run}/head.safetensors"),
        re.escape(f"wrote the plan to {segmented.plan}; ")
        + re.escape(f"pictures of the search, its trace and metrics.csv are in {run}"),
    ):
        assert re.search(f"^{line}$", segmented.outcome.out, re.MULTILINE), line
    assert "random weights" not in segmented.outcome.err


def test_json(segmented: Searched, tmp_path: Path):
    """From the folder of the same search, in which all stages are done."""
    outcome = call(*segmented.argv, "--folder", f"{segmented.plan}.run", "-o", tmp_path / "again", "--json")
    report = json.loads(outcome.out)
    run = f"{segmented.plan}.run"
    assert f"note: the search in {run} resumes (done: head, local distillation, supernet distillation, " in outcome.err
    assert re.search(r"task, control; \d+ paths rated\)\n", outcome.err)
    assert "resumes" not in segmented.outcome.err
    assert re.search(r"note: \d+ of \d images not read: the limit is 4\n", segmented.outcome.err)
    assert len(report["choices"]) == 2
    assert report["provenance"]["images_select"] == 3
    assert report["provenance"]["test"]["metric"] == "miou"
    assert Plan.load(tmp_path / "again").digest() == Plan.load(segmented.plan).digest()


def checked(models: Mapping[str, str], films: Path, plan: Path, *argv: object) -> Outcome:
    model = (models["DINOv3"], "--size", SIZES["DINOv3"])
    return call("check", *model, "--plan", plan, "--data", films, *argv)


def test_check_gives_the_metric_of_the_search(models: Mapping[str, str], films: Path, segmented: Searched):
    """On the same test images, with the head that the search trained."""
    argv = (*SEGMENTATION, "--limit", "4", "--head", f"{segmented.plan}.run/head.safetensors")
    test, number = Plan.load(segmented.plan).provenance["test"], r"[+-]?\d\.\d{4}"
    outcome = checked(models, films, segmented.plan, *argv)
    assert outcome.status == 0, outcome.err
    for line in (
        r"drift      \d\.\d{4} over 4 images of 64×96",
        f"mIoU on 4 images of {films.name}, with 95 % intervals over images",
        rf"  original +{number}   \[{number}, {number}\]",
        rf"  plan +{number}   \[{number}, {number}\]",
        rf"  plan − original +{number}  \[{number}, {number}\]  not shown to be non-inferior at margin 0.005",
        "The images are too few to show that the plan is as good.",
    ):
        assert re.search(f"^{line}$", outcome.out, re.MULTILINE), line
    assert "note: 2 of 6 images not read: the limit is 4\n" in outcome.err
    report = json.loads(checked(models, films, segmented.plan, *argv, "--json").out)
    for name in ("original", "plan"):
        assert report[name] == pytest.approx(test[name]["miou"], abs=1e-3)
    assert report["record"]["plan_minus_original"] == pytest.approx(test["plan_minus_original"], abs=2e-3)
    assert report["images"] == 4


def test_check_of_features_needs_no_labels(models: Mapping[str, str], films: Path, segmented: Searched):
    pictures = films / "val" / "images"
    model = (models["DINOv3"], "--size", SIZES["DINOv3"], "--plan", segmented.plan)
    outcome = call("check", *model, "--data", pictures, "--task", "features", "--batch", "4")
    assert outcome.status == 0, outcome.err
    assert "explained variation on 6 images of images" in outcome.out
    assert re.search(r"^  original +1\.0000 ", outcome.out, re.MULTILINE)


def test_check_by_the_head_of_the_model(models: Mapping[str, str], films: Path, tmp_path: Path):
    model = load_model(models["DepthAnything"]).model
    sites = find_attention(model, torch.zeros(1, 3, 42, 56))
    entry = SitePlan(sites[1].name, Choice("window", window=(2, 2)))
    Plan((entry,), Fingerprint.of(sites)).save(tmp_path / "plan")
    argv = ("--size", SIZES["DepthAnything"], "--plan", tmp_path / "plan", "--data", films / "val", *DEPTH)
    outcome = call("check", models["DepthAnything"], *argv, "--head", "model")
    assert outcome.status == 0, outcome.err
    assert "δ1 on 6 images of val" in outcome.out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "check needs either --images or --data"),
        (["--images=d", "--data=d"], "check needs either --images or --data"),
        (["--data=d"], "--data and --task belong together"),
        (["--images=d", "--task=features"], "--data and --task belong together"),
        (["--images=d", "--classes=2"], "--classes is of a task"),
        (["--images=d", "--taps=a"], "--taps is of a task"),
        (["--data=d", *SEGMENTATION], "--task segmentation needs --head"),
        (["--data=d", "--task=depth", "--head=model"], "--task depth needs --dialect"),
        (["--data=d", "--task=features", "--head=model"], "--head is of --task segmentation"),
    ],
)
def test_wrong_usage_of_check(argv: list[str], words: str):
    outcome = call("check", *PLAIN, "--plan", "p", *argv)
    assert (outcome.status, outcome.out) == (2, "")
    assert words in outcome.err


def test_check_refuses_data_and_heads_that_do_not_fit(
    models: Mapping[str, str], films: Path, segmented: Searched, tmp_path: Path
):
    outcome = checked(models, films, segmented.plan, *SEGMENTATION, "--head", "nowhere")
    assert (outcome.status, outcome.out) == (1, "")
    assert "error: no head nowhere" in outcome.err
    head = ("--head", f"{segmented.plan}.run/head.safetensors")
    outcome = checked(models, films, segmented.plan, "--task", "segmentation", "--classes", "3", *head)
    assert "linear.weight is [2, 16, 1, 1], and the task needs [3, 16, 1, 1]" in outcome.err
    outcome = checked(models, tmp_path, segmented.plan, *SEGMENTATION, *head)
    assert f"error: {tmp_path} holds no val/images and no images\n  why: segmentation needs val/" in outcome.err


def test_its_own_plan_is_written_once_more_and_no_other(segmented: Searched):
    again = (*segmented.argv, "-o", segmented.plan)
    digest = Plan.load(segmented.plan).digest()
    assert call(*again).status == 0
    assert Plan.load(segmented.plan).digest() == digest
    plan = segmented.plan / "plan.json"
    text = plan.read_text()
    try:
        plan.write_text(text + "\n")
        outcome = call(*again)
        assert (outcome.status, outcome.out) == (1, "")
        assert f"error: {segmented.plan} exists already\n" in outcome.err
    finally:
        plan.write_text(text)
    with locked(f"{segmented.plan}.run"):
        outcome = call(*again)
    assert (outcome.status, outcome.out) == (1, "")
    assert f"error: cannot write {segmented.plan}.run\n  why: another run writes to it" in outcome.err


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_where_it_was(
    models: Mapping[str, str], films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    argv = ("search", models["DINOv3"], "--size", "64x96", "--data", films / "train" / "images", *FEATURES, *TINY)
    assert call(*argv, "-o", tmp_path / "whole").status == 0
    run = tmp_path / "killed.run"
    run.mkdir()
    shutil.copy(tmp_path / "whole.run" / "latencies.json", run)  # measured: another time they are others
    train = Training._step

    def kill(self: Training, step: Any) -> None:
        if self.stage == "supernet_distillation" and len(self.rows) == 2:
            raise KeyboardInterrupt
        train(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", kill)
        outcome = call(*argv, "-o", tmp_path / "killed")
    assert (outcome.status, outcome.out) == (130, "")
    assert not (tmp_path / "killed").exists()
    done = (run / "local_distillation.safetensors").stat().st_mtime_ns
    outcome = call(*argv, "-o", tmp_path / "killed")
    assert outcome.status == 0
    assert "resumes (done: local distillation" in outcome.err
    assert (run / "local_distillation.safetensors").stat().st_mtime_ns == done
    assert Plan.load(tmp_path / "killed").digest() == Plan.load(tmp_path / "whole").digest()


def test_a_folder_of_another_search(segmented: Searched, tmp_path: Path):
    run = f"{segmented.plan}.run"
    outcome = call(*segmented.argv, "--folder", run, "-o", tmp_path / "plan", "--seed", "1")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.endswith(
        "error: the folder holds another search\n  why: seed is 1, and was 0\n"
        f"  where: {run}\n  do: name a new folder, or ask for the same as before\n"
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--task", "segmentation"], "--task segmentation needs --classes\n  do: give --classes N: how many classes"),
        (
            ["--task", "depth", "--nearest=1"],
            "--task depth needs --dialect, --farthest, --depth-scale\n  do: say which",
        ),
        ([*FEATURES, "--classes=2"], "--classes is of --task segmentation\n  do: leave it out, or give"),
        ([*SEGMENTATION, "--crop=0,1,0,1"], "--crop is of --task depth"),
        ([*FEATURES, "--head=model"], "--head is of --task segmentation"),
        (["--task", "detection"], "argument --task: 'detection' is none of segmentation, depth, features"),
        ([*FEATURES, "--table-dtype=bfloat16"], "name the table as well: --table FILE"),
        ([*FEATURES, "--choices=window"], "'window' is no choice: write 'linear', 'linear conv3', 'window 8'"),
        ([*FEATURES, "--choices=linear conv4"], "'linear conv4' is no choice: conv_size is 4, which is none of"),
        ([*FEATURES, "--effort=0"], "'0' is no effort: give a number above 0"),
        ([*FEATURES, "--budget=60%"], "'60%' is no budget: give a share of the full latency (0.6) or a time"),
        ([*DEPTH, "--crop=1,2"], "'1,2' is no crop: write top,bottom,left,right"),
        ([*SEGMENTATION, "--classes=1"], "'1' is no whole number of 2 or more"),
    ],
)
def test_wrong_usage(films: Path, tmp_path: Path, argv: list[str], words: str):
    outcome = call("search", *PLAIN, "--data", films, "-o", tmp_path / "plan", *argv)
    assert (outcome.status, outcome.out) == (2, "")
    assert words in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_choices_are_named_as_reports_name_them_and_random_weights_are_said(films: Path, tmp_path: Path):
    tiny = [f"--model-arg={each}" for each in ("depth=2", "embed_dim=32", "num_heads=2")]
    model = ("timm:vit_tiny_patch16_224", *tiny, "--size", "64x96")
    choices = "linear hedgehog,linear relu conv3, window 2x3 "
    outcome = call("search", *model, "--data", films, *FEATURES, *TINY, "--choices", choices, "-o", tmp_path / "plan")
    assert outcome.status == 0, outcome.err
    run = json.loads((tmp_path / "plan.run" / "run.json").read_text())
    assert run["choices"] == ["linear hedgehog", "linear relu conv3", "window 2x3"]
    assert "The weights are random: the speed is real, the quality is not. Metrics on them say nothing" in outcome.out


def test_data_that_does_not_fit(films: Path, tmp_path: Path):
    def refusal(data: Path, *argv: str) -> str:
        outcome = call("search", *PLAIN, "--data", data, *TINY, *argv, "-o", tmp_path / "plan")
        assert (outcome.status, outcome.out) == (1, "")
        assert not (tmp_path / "plan.run").exists()
        return outcome.err

    no_val = tmp_path / "no-val"
    shutil.copytree(films / "train", no_val / "train")
    assert f"no image folder {no_val / 'val' / 'images'}\n  why: it does not exist" in refusal(no_val, *SEGMENTATION)
    pictures = films / "train" / "images"
    message = refusal(pictures, *SEGMENTATION)
    assert f"{pictures} holds no train/images\n  why: segmentation needs folder/{{train,val}}/" in message
    assert "no image folder nowhere\n  why: it does not exist" in refusal(Path("nowhere"), *FEATURES)
    shutil.copytree(films / "val", no_val / "val")
    (no_val / "train" / "labels" / "film0_00.png").unlink()
    assert "no labels for the image film0_00.png\n  why: there is no" in refusal(no_val, *SEGMENTATION)
    assert "one test image does not tell how sure a metric is" in refusal(films, *FEATURES, "--limit", "1")
    assert "no group film9 in" in refusal(films, *FEATURES, "--select", "film9")


def test_a_budget_that_cannot_be_kept(films: Path, tmp_path: Path):
    argv = ("search", *PLAIN, "--data", films, *FEATURES, *TINY, "--budget", "0.001ms", "-o", tmp_path / "plan")
    outcome = call(*argv)
    assert (outcome.status, outcome.out) == (1, "")
    pattern = r"error: no plan keeps the budget\n  why: the fastest takes about [\d.]+ ms, and 0\.001 ms are allowed; "
    assert re.search(pattern, outcome.err)
    assert outcome.err.endswith("  do: allow more time, or give faster choices\n")
    assert not (tmp_path / "plan").exists()


def test_a_plan_cannot_take_the_place_of_a_file(films: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "plan"):
        outcome = call("search", *PLAIN, "--data", films, *FEATURES, *TINY, "-o", out)
        assert (outcome.status, outcome.out) == (1, "")
        assert "error: " in outcome.err
    assert (tmp_path / "file").read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
