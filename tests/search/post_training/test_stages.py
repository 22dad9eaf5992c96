"""The stages of a search, each alone on a set-up of a tiny model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jetvit.cost_model import FULL, Choice
from jetvit.patterns.errors import PlanError
from jetvit.search.data.processes import Processes
from jetvit.search.post_training.beam import Rated
from jetvit.search.post_training.path_search import Searched
from jetvit.search.post_training.record import recorded_plan
from jetvit.search.post_training.request import SearchRequest
from jetvit.search.post_training.setup import Setup, prepare
from jetvit.search.post_training.stages import (
    confirm_path,
    distil_choices,
    distil_paths,
    find_path,
    report_metrics,
    score_choices,
    select_survivors,
    train_control,
    train_plan,
    train_task_head,
)
from jetvit.search.tasks.segmentation import Segmentation
from tests.jetvit.costs import made_up_costs
from tests.search.fixed_latencies import FULL_MS, PLAN_MS, fixed_latencies
from tests.search.tiny import CONV, FEW, TASKS, WINDOW, noise, small

SITES = ["blocks.0.attn", "blocks.1.attn"]


def prepared(task: str = "segmentation", **changes: Any) -> Setup:
    options: dict[str, Any] = {"max_full": 1, "choices": (CONV, WINDOW), "recipe": FEW, "costs": made_up_costs()}
    return prepare(small(), noise(task), TASKS[task], SearchRequest(**(options | changes)), Processes())


def copies(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


def test_the_set_up_is_frozen_and_holds_the_bounds() -> None:
    setup = prepared(budget=0.9)
    assert list(setup.alternatives) == SITES
    assert setup.limit_ms == pytest.approx(0.9 * setup.latency.full_ms)
    assert (setup.max_full, setup.captured.batch, setup.captured.size) == (1, 2, (64, 64))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setup.sharded = True  # type: ignore[misc]


def test_the_head_is_trained_and_frozen() -> None:
    setup = prepared()
    head = setup.extractor.head
    assert head is not None
    assert head is setup.teacher.head
    before, of_the_net = copies(head), copies(setup.net)
    history = train_task_head(setup)
    assert history is not None
    assert len(history.of("head")) == FEW.head.steps
    assert changed(head, before) == set(before)
    assert not changed(setup.net, of_the_net)
    assert not any(value.requires_grad for value in head.parameters())


@pytest.mark.parametrize(
    ("task", "options"), [("features", {}), ("segmentation", {"head": Segmentation(2).head([32])})]
)
def test_a_head_without_labels_or_a_given_head_is_not_trained(task: str, options: dict[str, Any]) -> None:
    setup = prepared(task, **options)
    assert setup.extractor.head is not None
    before = copies(setup.extractor.head)
    assert train_task_head(setup) is None
    assert not changed(setup.extractor.head, before)


def test_choices_then_paths_are_distilled_and_scored() -> None:
    setup = prepared("features")
    before = copies(setup.net)
    losses = distil_choices(setup)
    assert set(losses.names) == {f"{choice.label} at {site}" for site in SITES for choice in (CONV, WINDOW)}
    trained = changed(setup.net, before)
    assert trained
    assert not any(".branches.0." in name for name in trained), "full attention was trained"
    kept = select_survivors(setup)
    assert {name: set(some) for name, some in kept.items()} == {name: {CONV, WINDOW} for name in SITES}
    one_each = {name: [some[0]] for name, some in kept.items()}
    before = copies(setup.net)
    assert distil_paths(setup, one_each).names == ("features",)
    assert changed(setup.net, before)
    scores = score_choices(setup, one_each)
    assert {name: list(some) for name, some in scores.items()} == {n: [FULL, *some] for n, some in one_each.items()}
    assert all(error > 0 for some in scores.values() for choice, error in some.items() if choice != FULL)


def test_a_path_is_found_from_given_scores(tmp_path: Path) -> None:
    setup = prepared("features", max_full=0, folder=tmp_path)
    scores = {name: {FULL: 0.0, CONV: 0.1, WINDOW: 0.2} for name in SITES}
    found = find_path(setup, setup.alternatives, scores)
    assert set(found.best.path) == set(SITES)
    assert FULL not in found.best.path.values()
    assert setup.run.folder is not None
    assert setup.run.folder.kept("trace")["best"] == found.best.to_json()


def test_a_path_slower_than_the_original_is_refused() -> None:
    setup = prepared("features", max_full=0)
    slow = dataclasses.replace(setup.latency, full_ms=setup.latency.full_ms, share=-1.0)
    scores = {name: {FULL: 0.0, CONV: 0.1, WINDOW: 0.2} for name in SITES}
    with pytest.raises(PlanError, match="no plan is faster than the original"):
        find_path(dataclasses.replace(setup, latency=slow), setup.alternatives, scores)


def test_timings_confirm_a_path_once(tmp_path: Path) -> None:
    with fixed_latencies():
        setup = prepared("features", costs=None, folder=tmp_path)
        found = confirm_path(setup, dict.fromkeys(SITES, WINDOW))
    assert found is not None
    assert (found.full_ms, found.plan_ms) == (FULL_MS, PLAN_MS)
    assert confirm_path(setup, dict.fromkeys(SITES, WINDOW)) == found, "it was timed again"


@pytest.mark.parametrize(("costs", "choice"), [(made_up_costs(), WINDOW), (None, FULL)])
def test_a_table_or_the_original_is_not_timed(costs: Any, choice: Choice) -> None:
    with fixed_latencies():
        setup = prepared("features", costs=costs)
    assert confirm_path(setup, dict.fromkeys(SITES, choice)) is None


def test_the_plan_and_the_control_are_trained_reported_and_recorded() -> None:
    setup = prepared(provenance={"made_for": "a test"})
    train_task_head(setup)
    path = {SITES[0]: CONV, SITES[1]: FULL}
    plan, control = train_plan(setup, path), train_control(setup)
    assert control is not None
    assert {site.name: site.choice for site in plan.student.plan().sites} == path
    assert {site.choice for site in control.student.plan().sites} == {FULL}
    metrics = report_metrics(setup, plan, control)
    assert metrics["original"]["feature_error"] == 0
    assert {"plan", "control", "plan_minus_control"} <= metrics.keys()
    best = Rated(path, 0.5, setup.latency(path))
    full = Rated(dict.fromkeys(SITES, FULL), 0.6, setup.latency.full_ms)
    found = Searched(best, (), (), {}, full)
    recorded = recorded_plan(setup, plan.student.plan(), found, {SITES[0]: {CONV: 0.25}}, None, metrics)
    assert recorded.digest() == plan.student.plan().digest()
    assert (recorded.sites[0].choice, recorded.sites[0].drift) == (CONV, 0.25)
    record = recorded.provenance
    assert (record["full_sites"], record["confirmed"], record["made_for"]) == (1, False, "a test")
    assert record["select"] == {"original": 0.6, "plan": 0.5}
    assert record["test"] == metrics


def test_a_task_without_labels_has_no_control() -> None:
    assert train_control(prepared("features")) is None
    assert train_control(prepared(recipe=dataclasses.replace(FEW, task=None))) is None
