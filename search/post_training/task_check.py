"""Measure what a plan does to the metric of a task, beside the original model, on labelled images."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.export import ExportedProgram

from jetvit.cost_model import Plan
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.pipeline import RewriteOptions, rewrite_program
from jetvit.patterns.errors import InputError, JetvitError
from jetvit.patterns.find import find_sites
from jetvit.search.calibration.fixed_grids import refuse_open_grids
from jetvit.search.calibration.runner import Output, Runner, pick
from jetvit.search.data.splits import Split, collate, filled_up
from jetvit.search.data.stream import Inputs
from jetvit.search.post_training.evaluation import Evaluator
from jetvit.search.post_training.feature_extractor import ExtractedFeatures, FeatureExtractor
from jetvit.search.post_training.report import MARGIN, report
from jetvit.search.post_training.train import Run
from jetvit.search.tasks.drift import Drift, check_finite, place_axes, squared_errors, variations
from jetvit.search.tasks.taps import Taps, task_blocks
from jetvit.search.tasks.task import Task

_OF_THE_HEAD = "value/head/"


@dataclass(frozen=True)
class TaskReport:
    """The metric of a task for the original model and for a plan, on the same images.

    * metric: its name. images: their number.
    * original, plan: its values. difference: plan − original, and the ends of its paired 95 % interval.
    * drift: of the model's own output, over all images.
    * record: all metrics, intervals, and whether the plan is shown to be as good, as in the plan of a search. A value
      that is not finite is None.
    """

    task: str
    metric: str
    images: int
    original: float | None
    plan: float | None
    difference: tuple[float | None, float | None, float | None]
    drift: float
    record: Mapping[str, Any]


def check_task(
    model: nn.Module | ExportedProgram,
    plan: Plan,
    data: Split,
    task: Task,
    *,
    head: nn.Module | str | os.PathLike[str] | None = None,
    taps: Sequence[str] | None = None,
    output: Output = None,
    inputs: Inputs | None = None,
    kwargs: Mapping[str, Any] | None = None,
    batch: int = 1,
    margin: float = MARGIN,
    progress: Callable[[str, int, int], None] | None = None,
) -> TaskReport:
    """Compare the rewritten model with the original one by the metric of a task.

    Args:
        model: a module in eval mode, or an exported program that takes batches of size `batch`.
        plan: the plan.
        data: images of one size, with the targets that the task needs; two or more.
        task: the metric, and what its head reads.
        head: the head of the task: a module, or the head.safetensors of a search. None where the task takes the output
            of the model itself (`taps=None`), or has no labels.
        taps: names of the blocks whose outputs the head reads; by default those of the search that made the plan, or
            as the task says.
        output: the tensor of the model's result that drift is measured on, and that is the task's output where the
            model has a head of its own; the first floating-point one by default.
        inputs: from images to the (args, kwargs) of a call; by default images as the first argument.
        kwargs: keyword arguments for every call, if `inputs` is not given.
        batch: images in a call.
        margin: how far below the original's metric the plan's still counts as not inferior.
        progress: called with a description, the steps done, and their number.
    Raises:
        PlanError: the plan does not fit the model.
        InputError: data, head or task that do not fit, or an output that is not finite.
    """
    if len(data) < 2:
        raise InputError("one image does not tell how sure a metric is", do="give more images")
    if task.labelled and (head is None) != (task.taps is None):
        why = "the task reads the output of the model itself" if task.taps is None else "the task reads a head"
        raise InputError("the task and the head do not fit", why=why, do="give a head, or a task with taps=None")
    images = filled_up(collate([data[place] for place in range(min(batch, len(data)))])[0], batch)
    tensor = next((each for each in model.parameters() if each.is_floating_point()), images)
    call: Inputs = inputs or (lambda some: ((some.to(tensor.device, tensor.dtype),), dict(kwargs or {})))
    plan_alone = RewriteOptions(exact=False)
    program = rewrite_program(export_model(model, *call(images)), options=plan_alone)
    rewritten = rewrite_program(program, plan, plan_alone)
    sites = find_sites(ExportedGraph(program))
    if not sites:
        raise JetvitError("the model has no full attention", do="see jetvit.explain")
    refuse_open_grids(sites, "a check by a task")
    original = program.module(check_guards=False)
    made_with = plan.provenance.get("taps") if plan.provenance.get("task") == task.name else None
    blocks = list(taps or made_with or task_blocks(task, original, sites))
    seen = Taps(original, blocks, sites[0])
    teacher = FeatureExtractor(original, seen, _head_of(task, head, seen.channels, tensor.device), call, output)
    changed = rewritten.module(check_guards=False)
    extractor = FeatureExtractor(changed, Taps(changed, blocks, sites[0]), teacher.head, call, output)
    run = Run(device=tensor.device, progress=progress or (lambda *_: None))
    drift = _DriftOfBatches(output, Runner(program, output).channel_axes())
    results = {
        "original": Evaluator(teacher, task, data, batch, run)(teacher, "reading the images: original"),
        "plan": Evaluator(teacher, task, data, batch, run, watch=drift.add)(extractor, "reading the images: plan"),
    }
    record = report(task, results, data.groups, margin)
    mean, low, high = record["plan_minus_original"]
    return TaskReport(
        task.name,
        task.metric,
        len(data),
        record["original"][task.metric],
        record["plan"][task.metric],
        (mean, low, high),
        drift.total,
        record,
    )


def load_head(file: str | os.PathLike[str], task: Task, channels: Sequence[int]) -> nn.Module:
    """The head that a search trained, from its head.safetensors.

    Args:
        file: where it is.
        task: the task of the search.
        channels: of each map that the head reads.
    Raises:
        InputError: there is no such file, it holds no trained head, or the head is of another task or model.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"no head {path}", why="there is no such file", do="give the head.safetensors of a search")
    try:
        with safe_open(path, "pt") as stored:
            names = [name for name in stored.keys() if name.startswith(_OF_THE_HEAD)]  # noqa: SIM118
            tensors = {name.removeprefix(_OF_THE_HEAD): stored.get_tensor(name) for name in names}
            record = json.loads((stored.metadata() or {}).get("record", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"the head {path} cannot be read", why=str(error), do="give another file") from error
    if not tensors:
        raise InputError(f"{path} holds no head", do="give the head.safetensors of a search, in its folder PLAN.run")
    if not record.get("done"):
        raise InputError(f"the head {path} is not trained to the end", do="resume the search that trains it")
    with torch.random.fork_rng(devices=[]):
        head = task.head(channels)
    own = {name: list(value.shape) for name, value in head.state_dict().items()}
    found = {name: list(value.shape) for name, value in tensors.items()}
    for name in [*own, *found]:
        if own.get(name) != found.get(name):
            raise InputError(
                f"the head {path} does not fit",
                why=f"{name} is {found.get(name, 'not in the file')}, and the task needs {own.get(name, 'none')}",
                do="give the task and the blocks (taps) of the search that trained it",
            )
    head.load_state_dict(tensors)
    return head


def _head_of(
    task: Task, head: nn.Module | str | os.PathLike[str] | None, channels: Sequence[int], device: torch.device
) -> nn.Module | None:
    if task.taps is None:
        return None
    if isinstance(head, nn.Module):
        made = copy.deepcopy(head)
    else:
        made = task.head(channels) if head is None else load_head(head, task, channels)
    return made.to(device).requires_grad_(False).eval()


@dataclass
class _DriftOfBatches:
    """Adds up drift from batch to batch; outputs are kept only where their mean is over the images."""

    output: Output
    channel_axes: tuple[int, ...] | None
    _error: float = 0.0
    _variation: float = 0.0
    _pooled: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, ours: ExtractedFeatures, theirs: ExtractedFeatures, count: int) -> None:
        """Count the first images of a batch."""
        output, reference = (pick(each.result, self.output)[:count].float() for each in (ours, theirs))
        check_finite(reference, "the model's output")
        places = place_axes(reference, self.channel_axes)
        if not places:
            self._pooled.append((output, reference))
            return
        self._error += sum(squared_errors(output, reference))
        self._variation += sum(variations(reference, places))

    @property
    def total(self) -> float:
        """The drift over all images."""
        if self._pooled:
            drift = Drift([reference for _, reference in self._pooled], ())
            for index, (output, _) in enumerate(self._pooled):
                drift.add(index, output)
            return drift.total
        if not self._variation > 0:
            raise InputError("the model's output does not vary within any image", do="name another output of the model")
        return self._error / self._variation
