"""The metric of a task for a plan: the numbers of the search, the drift of `check_plan`, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import jetvit
from jetvit.cost_model import Fingerprint, Plan, SitePlan
from jetvit.patterns.errors import InputError, PlanError
from jetvit.search import check_plan, check_task
from jetvit.search.calibration.run_folder import RunFolder
from jetvit.search.post_training.task_check import load_head
from jetvit.search.tasks.segmentation import Segmentation
from tests.search.tiny import TASKS, WINDOW, Noise, small, tiny_search


def windows(model: torch.nn.Module, count: int = 2) -> Plan:
    sites = jetvit.find_attention(model, torch.randn(1, 3, 64, 64))
    return Plan(tuple(SitePlan(site.name, WINDOW) for site in sites[:count]), Fingerprint.of(sites))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A search for segmentation, with its folder."""
    folder = tmp_path_factory.mktemp("search") / "run"
    return tiny_search(task="segmentation", folder=folder), folder


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_its_numbers_are_those_of_the_search(searched: tuple[Plan, Path], batch: int):
    """On the test images of the search with its head: 5 images, by batches of any size."""
    plan, folder = searched
    data, head = Noise(5, 3, "segmentation"), folder / "head.safetensors"
    report = check_task(small(), plan, data, TASKS["segmentation"], head=head, batch=batch)
    test = plan.provenance["test"]
    assert report.original == pytest.approx(test["original"]["miou"], abs=2e-3)
    assert report.plan == pytest.approx(test["plan"]["miou"], abs=2e-3)
    assert report.difference == pytest.approx(test["plan_minus_original"], abs=4e-3)
    assert report.record["plan"]["feature_error"] == pytest.approx(test["plan"]["feature_error"], rel=1e-2)
    assert (report.task, report.metric, report.images) == ("segmentation", "miou", 5)
    assert json.loads(json.dumps(asdict(report)))["record"] == report.record


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("output", [None, lambda out: out.mean(1)])
def test_drift_is_that_of_check_plan(batch: int, output: Any):
    """Over tokens, and where the output is pooled."""
    model, data = small(), Noise(4, 7)
    plan = windows(model)
    report = check_task(model, plan, data, TASKS["features"], batch=batch, output=output)
    batches = [data[place].image[None] for place in range(4)]
    assert report.drift == pytest.approx(check_plan(model, plan, batches, output=output).drift, rel=1e-4)
    assert report.drift > 0
    assert report.original == 1.0
    assert report.plan is not None
    assert report.plan < 1


def test_a_plan_that_changes_nothing():
    model = small()
    report = check_task(model, windows(model, 0), Noise(3, 5), TASKS["features"])
    assert (report.drift, report.difference) == (0, (0, 0, 0))
    assert not report.record["enough_images"]


def test_the_model_is_left_as_it_is():
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_task(model, windows(model), Noise(3, 5), TASKS["features"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_head_that_does_not_fit(searched: tuple[Plan, Path], tmp_path: Path):
    file = searched[1] / "head.safetensors"
    assert load_head(file, TASKS["segmentation"], [32])
    for task, channels, words in (
        (Segmentation(3), [32], "linear.weight is [2, 32, 1, 1], and the task needs [3, 32, 1, 1]"),
        (TASKS["segmentation"], [16], "linear.weight is [2, 32, 1, 1], and the task needs [2, 16, 1, 1]"),
        (TASKS["depth"], [32, 32], "levels.0.0.weight is not in the file, and the task needs"),
    ):
        with pytest.raises(InputError, match="does not fit") as error:
            load_head(file, task, channels)
        assert words in str(error.value.why)
    with pytest.raises(InputError, match="no head nowhere"):
        load_head("nowhere", TASKS["segmentation"], [32])
    with pytest.raises(InputError, match="holds no head"):
        load_head(searched[1] / "local_distillation.safetensors", TASKS["segmentation"], [32])
    (tmp_path / "a.safetensors").write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        load_head(tmp_path / "a.safetensors", TASKS["segmentation"], [32])
    RunFolder(tmp_path, {}).save("head", {"value/head/linear.weight": torch.zeros(1)}, {"done": False})
    with pytest.raises(InputError, match="is not trained to the end"):
        load_head(tmp_path / "head.safetensors", TASKS["segmentation"], [32])


def test_what_does_not_fit_is_refused():
    model = small()
    with pytest.raises(InputError, match="one image"):
        check_task(model, windows(model), Noise(1, 5), TASKS["features"])
    with pytest.raises(InputError, match="the task and the head do not fit"):
        check_task(model, windows(model), Noise(3, 5, "depth"), TASKS["depth"])
    own = Segmentation(2, taps=None)
    with pytest.raises(InputError, match="the task and the head do not fit"):
        check_task(model, windows(model), Noise(3, 5, "segmentation"), own, head=torch.nn.Identity())
    with pytest.raises(PlanError, match="another model"):
        check_task(small(3), windows(model), Noise(3, 5), TASKS["features"])


def test_it_is_the_public_function():
    assert jetvit.check_task is check_task
