"""The report: what was measured, rounded, with what it is compared with."""

from __future__ import annotations

import json

import pytest
import torch

from jetvit.search.post_training.evaluation import EvalResult
from jetvit.search.post_training.report import report
from jetvit.search.post_training.statistics import interval, non_inferior, paired
from jetvit.search.tasks.features import Features
from jetvit.search.tasks.segmentation import Segmentation

TASK = Segmentation(2)


def eval_result(right: float, seed: int = 0, images: int = 40) -> EvalResult:
    """Two classes, each labelled in half of the pixels, of which about so many are right."""
    generator = torch.Generator().manual_seed(seed)
    share = (right + 0.05 * torch.randn(images, generator=generator, dtype=torch.float64)).clamp(0, 1)
    counts = torch.stack([share, 1 - share, 1 - share, share], 1) * 50
    return EvalResult(counts, torch.full((images,), 0.25, dtype=torch.float64), share)


def test_its_numbers_are_those_of_the_statistics():
    results = {"original": eval_result(0.9), "plan": eval_result(0.898, 1), "control": eval_result(0.95)}
    found = report(TASK, results, [""] * 40, 0.005)
    assert json.loads(json.dumps(found)) == found
    assert (found["metric"], found["margin"], found["bootstrap_run"]) == ("miou", 0.005, 1)

    def value(counts: torch.Tensor) -> float:
        return TASK.metrics(counts)["miou"]

    for name, each in results.items():
        assert found[name]["miou"] == pytest.approx(value(each.counts), abs=1e-5)
        assert found[name]["pixel_accuracy"] == pytest.approx(float(each.agreement.mean()), abs=1e-5)
        assert found[name]["interval"] == pytest.approx(interval(value, each.counts), abs=1e-5)
        assert (found[name]["feature_error"], found[name]["agreement"]) == (0.25, found[name]["pixel_accuracy"])
    for name in ("original", "control"):
        difference = paired(value, results["plan"].counts, results[name].counts)
        assert found[f"plan_minus_{name}"] == pytest.approx(list(difference), abs=1e-5)
        assert found[f"non_inferior_to_{name}"] == non_inferior(difference, 0.005)
    assert not found["non_inferior_to_control"]
    assert "plan_minus_plan" not in found


def test_the_same_model_is_not_inferior():
    found = report(TASK, {"original": eval_result(0.9), "plan": eval_result(0.9)}, [""] * 40, 0.005)
    assert found["plan_minus_original"] == [0, 0, 0]
    assert found["non_inferior_to_original"]
    assert not {name for name in found if "control" in name}


@pytest.mark.parametrize(
    ("groups", "run"),
    [
        ([""] * 40, 1),  # not known
        ([str(number) for number in range(40)], 1),  # each from a film of its own
        (["film"] * 40, 10),
        (["film"] * 200, 10),
        (["one"] * 20 + [""] * 20, 10),
        (["film"] * 4, 2),  # a run of all images would be every draw
        (["film"] * 2, 1),
    ],
)
def test_frames_of_a_film_are_drawn_in_runs(groups: list[str], run: int):
    results = {"original": eval_result(0.9, 0, len(groups)), "plan": eval_result(0.9, 1, len(groups))}
    found = report(TASK, results, groups, 0.005)
    assert found["bootstrap_run"] == run

    def value(counts: torch.Tensor) -> float:
        return TASK.metrics(counts)["miou"]

    assert found["plan"]["interval"] == pytest.approx(interval(value, results["plan"].counts, run=run), abs=1e-5)


@pytest.mark.parametrize(
    ("count", "film", "enough"), [(99, True, False), (100, True, True), (9, False, False), (10, False, True)]
)
def test_few_images_show_nothing(count: int, film: bool, enough: bool):
    results = {"original": eval_result(0.9, 0, count), "plan": eval_result(0.9, 0, count)}
    found = report(TASK, results, ["film" if film else ""] * count, 0.005)
    assert found["enough_images"] == found["non_inferior_to_original"] == enough


def test_what_is_no_number_is_left_open():
    constant = EvalResult(torch.zeros(3, 2).double(), torch.full((3,), torch.nan), torch.ones(3))  # 0 of 0 is explained
    found = report(Features(), {"plan": constant}, [""] * 3, 0.005)
    assert found["plan"] == {"explained": None, "interval": [None, None], "feature_error": None, "agreement": 1}
