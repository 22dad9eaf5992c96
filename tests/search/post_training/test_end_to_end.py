"""Training of whole models: what learns, what stays, and what is not computed twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from jetvit.search.data.processes import Processes
from jetvit.search.data.stream import Stream
from jetvit.search.post_training import end_to_end
from jetvit.search.post_training.end_to_end import distil, supernet_distillation, train_head, train_on_task
from jetvit.search.post_training.feature_extractor import FeatureExtractor, relative_error
from jetvit.search.post_training.student import Student
from jetvit.search.post_training.supernet import FULL, Supernet
from jetvit.search.post_training.train import Run, Schedule
from jetvit.search.tasks.segmentation import Segmentation
from jetvit.search.tasks.taps import Taps
from tests.search.tiny import CONV, LINEAR, WINDOW, Noise, disturb, extractors

TASK = Segmentation(2)
SPLIT = Noise(5, 1, "segmentation")


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


def head_of(teacher: FeatureExtractor, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return TASK.head(teacher.taps.channels)


def stream(batch: int = 2) -> Stream:
    return Stream(SPLIT, batch, "a", Processes())


def student_of(net: Supernet, extractor: FeatureExtractor, path: dict[str, object]) -> tuple[Student, FeatureExtractor]:
    student = Student(net.program, net.plan(path))  # type: ignore[arg-type]
    return student, replace(
        extractor, model=student.model, taps=Taps(student.model, extractor.taps.blocks, net.sites[0])
    )


def test_a_head_learns_and_the_model_does_not():
    net, _, teacher = extractors(2)
    before = copies(net)
    teacher = replace(teacher, head=head_of(teacher))
    history = train_head(teacher, TASK, SPLIT, 2, Schedule(60, 3e-2, 3e-2), Run())
    assert history.names == ("head",)
    losses = history.of("head")
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10]), losses
    assert changed(net, before) == set()


def test_kept_features_are_those_that_are_computed(monkeypatch: pytest.MonkeyPatch):
    """Five images and batches of two: the last one is padded, and a step of four has images of two epochs."""
    trained = []
    for kept_bytes in (1 << 30, 0):
        monkeypatch.setattr(end_to_end, "_KEPT_BYTES", kept_bytes)
        _, _, teacher = extractors(2, taps=["blocks.0", "blocks.1"])
        calls: list[Tensor] = []
        inputs = teacher.inputs

        def counted(images: Tensor, calls: list[Tensor] = calls, inputs: object = inputs) -> object:
            calls.append(images)
            return inputs(images)  # type: ignore[operator]

        teacher = replace(teacher, head=head_of(teacher), inputs=counted)  # type: ignore[arg-type]
        history = train_head(teacher, TASK, SPLIT, 2, Schedule(6, 1e-2), Run())
        assert teacher.head is not None
        trained.append((history.of("head"), copies(teacher.head), len(calls)))
    (losses, weights, few), (others, same, many) = trained
    assert losses == pytest.approx(others, rel=1e-5)
    assert (few, many) == (3, 1 + 2 * 6)
    for name, value in weights.items():
        torch.testing.assert_close(value, same[name], rtol=1e-3, atol=1e-5)


def test_random_paths_learn_and_only_what_they_take():
    net, extractor, teacher = extractors(3)
    disturb(net)
    before = copies(net)
    images, _ = stream()(0)
    alternatives = {"blocks.0.attn": [CONV], "blocks.2.attn": [CONV, WINDOW]}
    paths = [{"blocks.0.attn": CONV, "blocks.2.attn": last} for last in (CONV, WINDOW)]

    def errors() -> list[float]:
        found = []
        for path in paths:
            with torch.no_grad(), net.path(path):
                found.append(float(relative_error(extractor.tokens(images), teacher.tokens(images)).mean()))
        return found

    first = errors()
    schedule = Schedule(30, 3e-3, 3e-3)
    history = supernet_distillation(net, extractor, teacher, stream(), alternatives, 1, schedule, Run())
    assert all(last < 0.8 * begin for begin, last in zip(first, errors(), strict=True)), (first, errors())
    taken = {
        id(value)
        for name, some in alternatives.items()
        for choice in some
        for value in net.choice_sites[name].parameters_of(choice).values()
    }
    names = dict(net.named_parameters())
    assert {id(names[name]) for name in changed(net, before)} == taken
    assert len(history.of("features")) == 30
    assert all(site.active == FULL for site in net.choice_sites.values())


@pytest.mark.parametrize("tap", ["blocks.0", "blocks.1"])
def test_a_path_without_a_weight_before_the_taps_is_no_step(tap: str):
    """All sites may be full, or those before the taps may be."""
    net, extractor, teacher = extractors(2, taps=[tap])
    disturb(net)
    alternatives = {name: [LINEAR] for name in net.choice_sites}
    history = supernet_distillation(net, extractor, teacher, stream(), alternatives, 2, Schedule(12, 1e-3), Run())
    losses = history.of("features")
    assert 0 in losses
    assert max(losses) > 0


def test_a_student_learns_the_features_of_the_original():
    net, extractor, teacher = extractors(2)
    disturb(net)
    before = copies(net)
    student, own = student_of(net, extractor, {"blocks.0.attn": CONV, "blocks.1.attn": WINDOW})
    weights = copies(student.model)
    history = distil(student, own, teacher, stream(), Schedule(40, 1e-3), Run())
    losses = history.of("features")
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5]), losses
    assert changed(net, before) == set(), "the original or the supernet changed"
    assert {"blocks.0.mlp.0.weight", "patch_embed.weight"} < changed(student.model, weights)


def test_a_validation_keeps_the_best_weights():
    net, extractor, teacher = extractors(2)
    student, own = student_of(net, extractor, {"blocks.0.attn": WINDOW})
    badness = iter((1.0, 2.0, 3.0, 4.0))
    seen = []

    def validate() -> float:
        seen.append(copies(student.model))
        return next(badness)

    schedule = Schedule(40, 1e-3, validate_every=2, patience=2)
    history = distil(student, own, teacher, stream(), schedule, Run(), validate)
    assert len(history.losses) == 6
    assert changed(student.model, seen[0]) == set()


@pytest.mark.parametrize("frozen", [True, False])
def test_the_task_trains_the_model_and_a_head_unless_it_is_frozen(frozen: bool):
    torch.manual_seed(0)
    net, extractor, _ = extractors(2, head=TASK.head([32]))
    assert extractor.head is not None
    extractor.head.requires_grad_(not frozen)
    student, own = student_of(net, extractor, {"blocks.1.attn": LINEAR})
    weights, head = copies(student.model), copies(extractor.head)
    history = train_on_task("task", student, own, TASK, stream(), Schedule(60, 3e-3, 3e-3), Run())
    losses = history.of("task")
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), losses  # two epochs each
    assert {"blocks.0.mlp.0.weight", "blocks.1.attn.qkv.weight"} < changed(student.model, weights)
    assert changed(extractor.head, head) == (set() if frozen else set(head))
