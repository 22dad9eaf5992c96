"""Training of whole models: a head on the original, paths of a supernet, and one rewritten model.

The loss of a distillation compares the features at the taps with those of the original model
(`jetvit.search.post_training.feature_extractor.relative_error`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jetvit.search.data.splits import Sample, Split, collate, filled_up
from jetvit.search.data.stream import Stream
from jetvit.search.post_training.feature_extractor import FeatureExtractor, relative_error
from jetvit.search.post_training.local_distillation import loss_name
from jetvit.search.post_training.paths import Alternatives, draw_path
from jetvit.search.post_training.student import Student
from jetvit.search.post_training.supernet import Supernet
from jetvit.search.post_training.train import History, Run, Schedule, Training
from jetvit.search.tasks.task import Task

# Features of all images are kept where they take less than this; else every step computes its own.
_KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class Kept:
    """A split whose images are the maps of the taps, stacked on the channel axis: computed once."""

    samples: tuple[Sample, ...]
    keys: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Sample:
        return self.samples[index]


def train_head(
    teacher: FeatureExtractor, task: Task, split: Split, batch: int, schedule: Schedule, run: Run
) -> History:
    """Train the head of an extractor on the features of the original model, which stays as it is.

    Args:
        teacher: the original model with a new head.
        task: its loss.
        split: labelled images.
        batch: images at a time: what the model was captured with; a step takes twice as many.
        schedule, run: how.
    """
    assert teacher.head is not None
    head = teacher.head
    batches = 2 * batch * run.processes.count
    images_or_maps: list[tuple[Stream, bool]] = []  # found at the first step: a stage that is done needs neither

    def step(number: int) -> dict[str, float]:
        if not images_or_maps:
            kept = _kept(teacher, split, batch, run)
            images_or_maps.append((Stream(kept or split, batches, f"{run.seed} head", run.processes), kept is not None))
        stream, has_maps = images_or_maps[0]
        images, targets = stream(number)
        assert targets is not None, "a head needs targets"
        maps = images.to(run.device).split(teacher.taps.channels, 1) if has_maps else _maps(teacher, images, batch, run)
        loss = task.loss(head(list(maps)), targets.to(run.device))
        loss.backward()
        return {"head": float(loss.detach())}

    groups = {"head": dict(head.named_parameters())}
    return Training("head", schedule, groups, (), run)(step)


def supernet_distillation(
    net: Supernet,
    extractor: FeatureExtractor,
    teacher: FeatureExtractor,
    stream: Stream,
    alternatives: Alternatives,
    max_full: int,
    schedule: Schedule,
    run: Run,
) -> History:
    """Train random paths, one a step, to yield the features of the original model.

    Args:
        net: the supernet; extractor: reads it. teacher: reads the original model.
        stream: the images.
        alternatives: what paths are drawn from. max_full: how many sites of a path may be full.
        schedule, run: how.
    """
    groups = {
        loss_name(name, choice): net.choice_sites[name].parameters_of(choice)
        for name, some in alternatives.items()
        for choice in some
    }

    def step(number: int) -> dict[str, float]:
        with net.path(draw_path(alternatives, max_full, f"{run.seed} {number} path")):
            loss = _feature_error(extractor, teacher, stream(number)[0], run)
        if loss.requires_grad:  # else all sites before the taps are full
            loss.backward()
        return {"features": float(loss.detach())}

    return Training("supernet_distillation", schedule, groups, net.program.state_dict, run)(step)


def distil(
    student: Student,
    extractor: FeatureExtractor,
    teacher: FeatureExtractor,
    stream: Stream,
    schedule: Schedule,
    run: Run,
    validate: Callable[[], float] | None = None,
) -> History:
    """Train all weights of a rewritten model to yield the features of the original one."""

    def step(number: int) -> dict[str, float]:
        loss = _feature_error(extractor, teacher, stream(number)[0], run)
        loss.backward()
        return {"features": float(loss.detach())}

    training = Training(
        "distillation", schedule, {"model": student.parameters}, student.inherited, run, student.choices
    )
    return training(step, validate)


def train_on_task(
    stage: str,
    student: Student,
    extractor: FeatureExtractor,
    task: Task,
    stream: Stream,
    schedule: Schedule,
    run: Run,
    validate: Callable[[], float] | None = None,
) -> History:
    """Train all weights of a model by the loss of a task on labelled images; the head too, unless it is frozen."""

    def step(number: int) -> dict[str, float]:
        images, targets = stream(number)
        assert targets is not None, "the task needs targets"
        with run.autocast():
            output = extractor(images).output
        loss = task.loss(output.float(), targets.to(output.device))
        loss.backward()
        return {"task": float(loss.detach())}

    head = {} if extractor.head is None else dict(extractor.head.named_parameters())
    trained = {name: value for name, value in head.items() if value.requires_grad}
    groups = {"model": student.parameters} | ({"head": trained} if trained else {})
    return Training(stage, schedule, groups, student.inherited, run, student.choices)(step, validate)


def _feature_error(extractor: FeatureExtractor, teacher: FeatureExtractor, images: Tensor, run: Run) -> Tensor:
    """The relative error of a model's features against the original's, the mean over the images."""
    with torch.no_grad(), run.autocast():
        reference = teacher.tokens(images)
    with run.autocast():
        return relative_error(extractor.tokens(images), reference).mean()


@torch.no_grad()
def _maps(teacher: FeatureExtractor, images: Tensor, batch: int, run: Run) -> list[Tensor]:
    """The maps of any number of images, by batches of the one size that a captured model takes."""
    found = []
    for some in filled_up(images, batch).split(batch):
        with run.autocast():
            found.append(torch.cat(teacher.maps(teacher.tokens(some)), 1))
    return list(torch.cat(found)[: len(images)].split(teacher.taps.channels, 1))


def _kept(teacher: FeatureExtractor, split: Split, batch: int, run: Run) -> Kept | None:
    """The maps of all images, if they fit."""
    samples: list[Sample] = []
    for first in range(0, len(split), batch):
        some = [split[place] for place in range(first, min(first + batch, len(split)))]
        maps = torch.cat(_maps(teacher, collate(some)[0], batch, run), 1).cpu()
        if maps[0].numel() * maps.element_size() * len(split) > _KEPT_BYTES:
            return None
        samples += (Sample(each, sample.target) for each, sample in zip(maps, some, strict=True))
        run.progress("reading features", len(samples), len(split))
    return Kept(tuple(samples), tuple(split.keys), tuple(split.groups))
