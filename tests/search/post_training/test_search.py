"""The whole search on a tiny model: continued, shared out, repeated, bounded, and emitted as it was trained."""

from __future__ import annotations

import csv
import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetvit
from jetvit.cost_model import Choice, Plan
from jetvit.patterns.errors import InputError, PlanError
from jetvit.search.data.splits import Sample, Splits
from jetvit.search.post_training import stages
from jetvit.search.post_training.evaluation import Evaluator
from jetvit.search.post_training.paths import path_key
from jetvit.search.post_training.recipe import Recipe
from jetvit.search.post_training.student import Student
from jetvit.search.post_training.train import Run
from jetvit.search.tasks.depth import Depth
from jetvit.search.tasks.features import Features
from jetvit.search.tasks.segmentation import Segmentation
from jetvit.search.tasks.task import Task
from tests.passes.models import assert_close
from tests.search.fixed_latencies import fixed_latencies
from tests.search.tiny import (
    CONV,
    FEW,
    LONG,
    SIZE,
    TASKS,
    WINDOW,
    Noise,
    disturb,
    extractors,
    noise,
    small,
    tiny_search,
)
from tests.zoo.quick import sweep

PROGRAM = ("-m", "tests.search.tiny")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def whole() -> Plan:
    """What a run comes to that nobody disturbs."""
    return tiny_search(task="segmentation", recipe=LONG)


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def what_it_says(plan: Plan) -> dict[str, Any]:
    """All of a plan but its weights, and but what is about the run itself."""
    own = ("date", "search_seconds", "process")
    return {
        "sites": plan.sites,
        "size": plan.size,
        "provenance": {name: value for name, value in plan.provenance.items() if name not in own},
    }


# A quick run continues a killed search in tests/jetvit/test_search_command.py.
@pytest.mark.slow
def test_killed_and_continued_it_is_the_same_plan(whole: Plan, tmp_path: Path):
    # Steps that are done before the kill, which then comes at any moment of the next few steps.
    rng = random.Random(0)
    killed = []
    for steps in (80, 42, 60):
        delay = rng.uniform(0, 0.05)
        process = start(*PROGRAM, str(tmp_path / "run"))
        assert process.stdout is not None
        lines = [line for _, line in zip(range(steps), process.stdout, strict=False)]
        time.sleep(delay)
        process.kill()
        process.stdout.close()
        if process.wait() == -9:
            killed.append(lines[-1].rpartition(" ")[0])
    # It was killed in several stages: so it did go on.
    assert len(killed) == 3, killed
    assert len(set(killed)) == 3, killed
    subprocess.run([sys.executable, *PROGRAM, str(tmp_path / "run")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = Plan.load(tmp_path / "run" / "plan")
    assert what_it_says(found) == what_it_says(whole), killed
    assert found.digest() == whole.digest(), killed


# A quick run shares work out in tests/search/data/test_processes.py.
@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "sharded"])
def test_two_processes_find_what_one_finds(whole: Plan, tmp_path: Path, how: str):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    command = [sys.executable, *launch, *PROGRAM, str(tmp_path), how]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = Plan.load(tmp_path / "plan")
    assert {site.name: site.choice for site in found.sites} == {site.name: site.choice for site in whole.sites}
    assert found.weights.keys() == whole.weights.keys()
    assert found.digest() != whole.digest()  # sums of two halves: not one process that did it all
    for name, value in whole.weights.items():
        torch.testing.assert_close(
            found.weights[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    ours, theirs = (plan.provenance["test"]["plan"]["miou"] for plan in (found, whole))
    assert ours == pytest.approx(theirs, abs=2e-3)
    assert {path.name for path in tmp_path.iterdir()} >= {"run.json", "task.safetensors", "metrics.csv", "trace.json"}
    if how == "sharded":  # what was kept is divided again
        (tmp_path / "task.safetensors").unlink()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        assert Plan.load(tmp_path / "plan").digest() == found.digest()


@pytest.mark.slow
def test_the_seed_decides():
    one, again, other = (tiny_search(task="segmentation", seed=seed) for seed in (0, 0, 1))
    assert again.digest() == one.digest()
    assert what_it_says(again) == what_it_says(one)
    assert other.digest() != one.digest()


def test_a_run_that_is_done_is_read_again(tmp_path: Path):
    steps: list[str] = []
    first = tiny_search(folder=tmp_path)
    again = tiny_search(folder=tmp_path, progress=lambda what, done, total: steps.append(what))
    assert again.digest() == first.digest()
    assert not {what for what in steps if "distillation" in what or what == "rating paths"}, "it trained again"
    with pytest.raises(InputError, match="the folder holds another search") as error:
        tiny_search(folder=tmp_path, max_full=0)
    assert error.value.why == "max_full is 0, and was 1"
    with pytest.raises(InputError, match="the folder holds another search") as error:
        tiny_search(small(3), folder=tmp_path)
    assert str(error.value.why).startswith("sites is ")


@pytest.mark.slow
def test_a_run_is_not_continued_with_another_head(tmp_path: Path):
    heads = [Segmentation(2).head([32]) for _ in range(2)]
    tiny_search(task="segmentation", head=heads[0], folder=tmp_path)
    tiny_search(task="segmentation", head=heads[0], folder=tmp_path)
    for other in (heads[1], None):
        with pytest.raises(InputError, match="the folder holds another search") as error:
            tiny_search(task="segmentation", head=other, folder=tmp_path)
        assert str(error.value.why).startswith("head is ")


class Students(list[Student]):
    """Keeps every student that a search makes: the first is the one that was found, the second the control."""

    def __call__(self, *args: Any) -> Student:
        self.append(Student(*args))
        return self[-1]


@pytest.fixture
def students(monkeypatch: pytest.MonkeyPatch) -> Students:
    made = Students()
    monkeypatch.setattr(stages, "Student", made)
    return made


@pytest.mark.parametrize("name", sweep(TASKS, quick=["depth"]))
def test_what_was_trained_is_what_is_emitted(name: str, students: Students):
    model = small(3)
    before = {fqn: value.clone() for fqn, value in model.state_dict().items()}
    plan = tiny_search(model, name)
    assert all(torch.equal(value, before[fqn]) for fqn, value in model.state_dict().items()), "the original changed"
    assert {site.choice for site in plan.sites} & {CONV, WINDOW}
    image = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = students[0].model(image)
        assert (expected - model(image)).abs().max() > 1e-2
        assert_close(jetvit.optimize(model, image, plan=plan)(image), expected)
        compiled = torch.compile(model, backend="jetvit", options={"plan": plan, "inner": "eager"})
        assert_close(compiled(image), expected)


@pytest.mark.parametrize("name", TASKS)
def test_the_report_of_a_task(name: str, students: Students):
    task = TASKS[name]
    plan = tiny_search(task=task, provenance={"made_for": "a test"})
    record = plan.provenance
    assert (record["task"], record["made_for"], record["images_test"]) == (name, "a test", 5)
    assert plan.size == SIZE
    found = record["test"]
    assert found["metric"] == task.metric
    compared = {"original", "plan"} | ({"control"} if task.labelled else set())
    assert {each for each in compared | {"control"} if each in found} == compared
    assert len(students) == len(compared) - 1
    assert (found["original"]["feature_error"], found["original"]["agreement"]) == (0, pytest.approx(1))
    assert found["plan"]["feature_error"] > 0
    for each in compared:
        low, high = found[each]["interval"]
        assert low <= found[each][task.metric] <= high
    difference = found["plan"][task.metric] - found["original"][task.metric]
    assert found["plan_minus_original"][0] == pytest.approx(difference, abs=2e-5)
    assert {"original", "plan", "random"} <= record["select"].keys()


def test_a_path_with_convolutions_is_timed_with_its_weights():
    with fixed_latencies():
        plan = tiny_search(choices=(CONV,), costs=None, max_full=0)
    made = plan.provenance
    assert {site.choice for site in plan.sites} == {CONV}
    assert made["confirmed"] is True
    assert made["speedup"] == [1.25, 1.25, 1.25]
    assert (made["eager_full_ms"], made["eager_plan_ms"]) == (100.0, 80.0)


@pytest.mark.parametrize("max_full", sweep([0, 1, 2], quick=[0, 1]))
def test_full_attention_stays_at_so_many_sites(max_full: int):
    # Nothing explains the features as well as full attention, so as much of it is taken as there may be.
    plan = tiny_search(small(3), "features", max_full=max_full)
    assert [site.choice.kind for site in plan.sites].count("full") == max_full == plan.provenance["full_sites"]


def test_a_budget_is_kept():
    # By the table full attention takes 12.34 ms and linear attention 1.5 ms: to save 11 ms takes two of them.
    full_ms = tiny_search(max_full=0).provenance["estimated_full_ms"]
    plan = tiny_search(small(3), budget=f"{full_ms + 12.34 - 11}ms", max_full=None)
    assert plan.provenance["estimated_plan_ms"] <= full_ms + 12.34 - 11
    assert [site.choice.kind for site in plan.sites].count("full") == 1
    with pytest.raises(PlanError, match="no plan keeps the budget") as error:
        tiny_search(budget="0.1ms", max_full=None)
    assert f"and 0.1 ms are allowed; the full model takes {full_ms:.4g} ms" in str(error.value.why)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "fp16"}, "the precision is 'fp16'"),
        ({"budget": 1.5}, "1.5 is no budget"),
        ({"taps": ["blocks.7"]}, "nothing leaves the block blocks.7"),
        ({"task": Depth("disparity", 0.1, 10.0, taps=4)}, "4 taps in 2 blocks"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_step(wrong: dict[str, Any], message: str):
    steps: list[str] = []
    with pytest.raises(InputError, match=message):
        tiny_search(**wrong, progress=lambda what, done, total: steps.append(what))
    assert steps == []


def test_splits_that_share_images_are_refused():
    with pytest.raises(InputError, match="the train and test splits share an image"):
        Splits(Noise(3, 1), Noise(3, 2), Noise(3, 1))


class Segmenter(nn.Module):
    """A model with a head of its own, which reads its first and its last block; its result is a dict."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = small(3), nn.Conv2d(64, 2, 1)
        nn.init.constant_(self.head.weight, 0.1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        own = self.backbone
        x = own.patch_embed(pixels)
        height, width = x.shape[-2:]
        x = torch.cat([own.extra_tokens.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        read = []
        for block in own.blocks:
            x = block(x)
            read.append(F.layer_norm(x[:, 1:], (32,)).mT.unflatten(2, (height, width)))
        return {"tokens": x, "logits": self.head(torch.cat([read[0], read[-1]], 1))}


def test_a_model_with_a_head_of_its_own(students: Students):
    task: Task = Segmentation(2, taps=None)
    model = Segmenter().eval()
    plan = tiny_search(model, task, output="logits", inputs=lambda images: ((), {"pixels": images}))
    assert plan.provenance["taps"] == ["backbone.blocks.0", "backbone.blocks.2"]
    assert {"head.weight", "head.bias"} < plan.weights.keys()
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        expected = students[0].model(pixels=image)["logits"]
        found = jetvit.optimize(model, kwargs={"pixels": image}, plan=plan)(pixels=image)["logits"]
    assert_close(found, expected)


def test_a_head_that_is_given_is_not_trained():
    given = Segmentation(2).head([32])
    before = [value.clone() for value in given.parameters()]
    steps: set[str] = set()
    plan = tiny_search(task="segmentation", head=given, progress=lambda what, done, total: steps.add(what))
    assert "head" not in steps
    assert "task" in steps
    assert all(torch.equal(*pair) for pair in zip(given.parameters(), before, strict=True))
    assert all(value.requires_grad for value in given.parameters())
    assert plan.provenance["test"]["metric"] == "miou"


class Bare(nn.Module):
    """Attention without a projection of its output: it cannot be cut out."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_a_site_that_cannot_be_trained_keeps_full_attention():
    model = small(3)
    model.blocks[1] = Bare()
    with pytest.raises(InputError, match="1 attention stays full, and max_full is 0") as error:
        tiny_search(model.eval(), max_full=0)
    assert "no output projection" in error.value.why
    plan = tiny_search(model.eval(), max_full=1)
    kinds = {site.name: site.choice.kind for site in plan.sites}
    assert kinds.pop("blocks.1") == "full"
    assert set(kinds) == {"blocks.0.attn", "blocks.2.attn"}
    assert "full" not in kinds.values()
    assert plan.provenance["full_sites"] == 1


def test_the_teacher_is_the_original_whatever_path_is_active():
    net, extractor, teacher = extractors(head=Features().head([32]))
    disturb(net)
    evaluate = Evaluator(teacher, Features(), Noise(3, 1), 2, Run())
    with net.path(dict.fromkeys(net.choice_sites, CONV)):
        original, converted = evaluate(teacher), evaluate(extractor)
    assert original.errors.tolist() == [0, 0, 0]
    assert Features().metrics(original.counts)["explained"] == 1
    assert (converted.errors > 1e-2).all()


def test_stages_may_be_left_out(students: Students):
    recipe = Recipe(**{**FEW.__dict__, "distil": None, "task": None})
    steps: set[str] = set()
    plan = tiny_search(task="segmentation", recipe=recipe, progress=lambda what, done, total: steps.add(what))
    assert not steps & {"distillation", "task", "control"}
    assert "control" not in plan.provenance["test"]
    assert math.isfinite(plan.provenance["test"]["plan"]["miou"])
    (found,) = students
    assert found.plan().digest() == plan.digest()


def test_choices_are_kept_by_both_bounds():
    plan = tiny_search(small(3), choices=(WINDOW,), max_full=1, budget=0.7)
    assert {site.choice for site in plan.sites} <= {Choice("full"), WINDOW}
    assert plan.provenance["estimated_plan_ms"] <= 0.7 * plan.provenance["estimated_full_ms"]
    assert noise("features").record()["split_test"] == plan.provenance["split_test"]


def test_progress_on_another_path_is_not_continued(tmp_path: Path):
    """The weights of two choices may have the same names: what was trained for one is no beginning for the other."""
    first = tiny_search(folder=tmp_path, max_full=0)
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    chosen = path_key({site.name: site.choice for site in first.sites})
    other = next(
        line for line in lines if line["path"] != chosen and '"full"' not in line["path"] and line["path"] != "{}"
    )
    for line in lines:
        line["value"] = 3.0 if line["path"] == "{}" else 2.0 if line is other else 0.0
    (tmp_path / "evaluations.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    second = tiny_search(folder=tmp_path, max_full=0)
    assert path_key({site.name: site.choice for site in second.sites}) == other["path"]
    losses = [
        float(row["loss"])
        for row in csv.DictReader((tmp_path / "metrics.csv").open())
        if row["stage"] == "distillation"
    ]
    assert len(losses) == FEW.distil.steps
    assert first.weights.keys() != second.weights.keys() or any(
        not torch.equal(first.weights[name], value) for name, value in second.weights.items()
    )


def test_other_labels_are_another_search(tmp_path: Path):
    tiny_search(task="segmentation", folder=tmp_path)

    class Inverted(Noise):
        def __getitem__(self, index: int, /) -> Sample:
            image, target = super().__getitem__(index)
            return Sample(image, 1 - target)

    splits = Splits(*(Inverted(count, seed, "segmentation") for count, seed in ((5, 1), (4, 2), (5, 3))))
    with pytest.raises(InputError, match="the folder holds another search") as error:
        tiny_search(task="segmentation", folder=tmp_path, data=splits)
    assert error.value.why.startswith("samples is ")


def test_what_cannot_go_well_is_refused_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages, "local_distillation", None)
    with pytest.raises(InputError, match="a search without labels needs a bound"):
        tiny_search(max_full=None)
    with pytest.raises(InputError, match="bfloat16 weights cannot be trained") as error:
        tiny_search(small().bfloat16())
    assert "--precision bf16" in error.value.do
    with pytest.raises(InputError, match="a head was given"):
        tiny_search(task=Segmentation(2, taps=None), head=nn.Identity())

    class Void(Noise):
        def __getitem__(self, index: int, /) -> Sample:
            image, target = super().__getitem__(index)
            return Sample(image, torch.full_like(target, 255))

    void = Splits(*(Void(count, seed, "segmentation") for count, seed in ((5, 1), (4, 2), (5, 3))))
    with pytest.raises(InputError, match="nothing counts in the targets of the train images"):
        tiny_search(task="segmentation", data=void)
