"""The set-up of a search: the model, its supernet, the task, the latencies and the run that all stages share."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.export import ExportedProgram

from jetvit.cost_model import FULL
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted
from jetvit.search.calibration.run_folder import RunFolder, resume_message
from jetvit.search.data.processes import Processes
from jetvit.search.data.splits import Split, Splits, evenly_spaced
from jetvit.search.data.stream import Stream
from jetvit.search.post_training.captured import CapturedModel
from jetvit.search.post_training.evaluation import Evaluator
from jetvit.search.post_training.feature_extractor import FeatureExtractor
from jetvit.search.post_training.latencies import path_latency
from jetvit.search.post_training.path_search import refuse_tight_budget
from jetvit.search.post_training.paths import Alternatives
from jetvit.search.post_training.recipe import Recipe
from jetvit.search.post_training.request import SearchRequest
from jetvit.search.post_training.run_config import run_config
from jetvit.search.post_training.scores import PathLatency
from jetvit.search.post_training.shards import shard
from jetvit.search.post_training.student import Student
from jetvit.search.post_training.supernet import Supernet
from jetvit.search.post_training.train import Run
from jetvit.search.tasks.taps import Taps, WithTokens, task_blocks
from jetvit.search.tasks.task import Task

log = logging.getLogger(__name__)

# Images of each split whose targets are checked before the long work.
_CHECKED = 8


@dataclass(frozen=True)
class Setup:
    """The values that all stages of a search share. Stages change only the weights of the supernet and of the head.

    * request, data, task: the arguments of `search`. recipe: stages and sizes.
    * captured: the model. net: its supernet.
    * run: seed, folder, precision, processes and progress of all stages.
    * extractor: features of the supernet on its active path. teacher: features of the original model, same head.
    * select: evaluates models on the choosing images.
    * alternatives: the choices of each site besides full attention.
    * latency: of paths. limit_ms: the bound on it. max_full: the bound on the full sites among those with choices.
    * sharded: whether each process holds a part of the trained weights.
    * started_s: the time on `time.perf_counter` when the search started.
    """

    request: SearchRequest
    data: Splits
    task: Task
    recipe: Recipe
    captured: CapturedModel
    net: Supernet
    run: Run
    extractor: FeatureExtractor
    teacher: FeatureExtractor
    select: Evaluator
    alternatives: Alternatives
    latency: PathLatency
    limit_ms: float
    max_full: int | None
    sharded: bool
    started_s: float

    def stream(self, stage: str, flip: bool = False) -> Stream:
        """Return the training batches of a stage."""
        seed = f"{self.request.seed} {stage}"
        return Stream(self.data.train, self.recipe.batch, seed, self.run.processes, flip=flip)

    def metric(self, extractor: FeatureExtractor, description: str) -> float:
        """Measure the task's metric of a model on the choosing images; more is better."""
        counts = self.select(extractor, description, compare=False).counts
        return self.task.metrics(counts)[self.task.metric]

    def extractor_of(self, student: Student) -> FeatureExtractor:
        """Return an extractor of a student's features, with the same head. Divides the student's weights if sharded."""
        taps = Taps(student.model, self.extractor.taps.blocks, self.net.sites[0])
        if not self.sharded:
            return replace(self.extractor, model=student.model, taps=taps)
        both = WithTokens(student.model, taps)
        shard(both, self.run.processes)
        return replace(self.extractor, model=lambda *args, **kwargs: both(*args, **kwargs)[0], taps=taps)


def prepare(
    model: nn.Module | ExportedProgram, data: Splits, task: Task, request: SearchRequest, processes: Processes
) -> Setup:
    """Capture the model, build its supernet, open the folder and get the latencies.

    Raises:
        InputError: data, task, request or folder do not fit the model.
        JetvitError: the model has no attention that can be searched.
        PlanError: no path keeps the budget.
    """
    started_s, recipe = time.perf_counter(), request.recipe or Recipe()
    _refuse_sizes(recipe, data, processes)
    captured = CapturedModel.of(model, data.train, request, recipe.batch // processes.count)
    net = Supernet(captured.program, request.choices, seed=request.seed)
    _refuse_max_full(net, request.max_full)
    folder = None
    if request.folder is not None:
        config = run_config(captured, net, data, task, request, recipe)
        folder = RunFolder(request.folder, config, writes=processes.first)
        if folder.resumed and processes.first:
            log.info("%s", resume_message(folder))
    run = _run(request, folder, captured.device, processes)
    sharded = request.sharded and processes.count > 1
    for site in net.choice_sites.values() if sharded else ():
        site.shard(processes)
    extractor = _extractor(captured, net, task, request)
    teacher = replace(extractor, model=net.original)
    alternatives = {
        name: [choice for choice in site.choices if choice != FULL] for name, site in net.choice_sites.items()
    }
    latency = path_latency(captured, request, {site.name: alternatives.get(site.name, ()) for site in net.sites}, run)
    limit_ms = request.limit_ms(latency.full_ms)
    setup = Setup(
        request=request,
        data=data,
        task=task,
        recipe=recipe,
        captured=captured,
        net=net,
        run=run,
        extractor=extractor,
        teacher=teacher,
        select=Evaluator(teacher, task, data.select, captured.batch, run, recipe.select_images),
        alternatives=alternatives,
        latency=latency,
        limit_ms=math.inf if limit_ms is None else limit_ms,
        max_full=None if request.max_full is None else request.max_full - len(net.always_full),
        sharded=sharded,
        started_s=started_s,
    )
    refuse_tight_budget(alternatives, latency, setup.limit_ms, setup.max_full)
    check_targets(setup)
    return setup


@torch.no_grad()
def check_targets(setup: Setup) -> None:
    """Check the targets, and the model's output for them, before the long work.

    Raises:
        InputError: labels are missing, nothing counts in the targets, or the model does not return an output an image.
    """
    task, example = setup.task, setup.captured.example
    output = setup.teacher(example).output.float()
    if len(output) != len(example):
        raise InputError(
            f"the model yields {counted(len(output), 'output')} for {counted(len(example), 'image')}",
            do="give a model of single images",
        )
    for name in ("train", "select", "test"):
        split: Split = getattr(setup.data, name)
        targets = [split[place].target for place in evenly_spaced(len(split), _CHECKED)]
        if task.labelled and any(target is None for target in targets):
            raise InputError(f"{task.name} needs labels", why=f"an image of the {name} split has none")
        wanted = [output[:1] if target is None or not task.labelled else target[None] for target in targets]
        counts = torch.cat([task.counts(output[:1], each.to(output.device)) for each in wanted])
        if task.labelled and not math.isfinite(task.metrics(counts)[task.metric]):
            raise InputError(
                f"nothing counts in the targets of the {name} images",
                why=f"{task.metric} of {len(targets)} of them has no value",
                do="check the labels: the number of classes, or the unit and the range of depths",
            )


def _refuse_sizes(recipe: Recipe, data: Splits, processes: Processes) -> None:
    if recipe.batch % processes.count:
        raise InputError(f"a batch of {recipe.batch} cannot be divided among {processes.count} processes")
    if len(data.test) < 2:
        raise InputError("one test image does not tell how sure a metric is", do="give more test images")


def _refuse_max_full(net: Supernet, max_full: int | None) -> None:
    always = net.always_full
    if max_full is not None and max_full < len(always):
        raise InputError(
            f"{counted(len(always), 'attention stays', 'attentions stay')} full, and max_full is {max_full}",
            why=net.kept_full.get(always[0], "no choice for it is another function than full attention"),
            where=always[0],
            do="allow more full attention, or give other choices",
        )


def _run(request: SearchRequest, folder: RunFolder | None, device: torch.device, processes: Processes) -> Run:
    return Run(
        request.seed,
        folder,
        device=device,
        precision=request.precision,
        processes=processes,
        progress=request.progress or (lambda *_: None),
    )


def _extractor(captured: CapturedModel, net: Supernet, task: Task, request: SearchRequest) -> FeatureExtractor:
    blocks = list(request.taps) if request.taps is not None else task_blocks(task, net.model, net.sites)
    taps = Taps(net.model, blocks, net.sites[0])
    head = _head(task, request, taps.channels)
    head = None if head is None else head.to(captured.device)
    return FeatureExtractor(net, taps, head, captured.inputs, request.output)


def _head(task: Task, request: SearchRequest, channels: Sequence[int]) -> nn.Module | None:
    """Return a copy of the request's head, or a new one; None where the model has a head of its own."""
    if task.taps is None:
        return None
    if request.head is not None:
        return copy.deepcopy(request.head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        return task.head(channels)
