"""Post-training attention search: a plan with trained weights, for a task, within a latency.

The stages, each of which goes on where it was when the run is killed: the head of the task on the original model; local
distillation of every choice at every site; scores of single choices, which leave a few a site; distillation of random
paths; the search for a path, by an integer program over the scores and by the paper's beam search, both rated by the
task's own metric; and training of the one model that was found. Source: arXiv 2605.26636, with a control beside it and
with images to choose by that are not those of the report.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from jetvit.cost_model import FULL, Choice, DeviceCosts, Measured, Plan, SitePlan
from jetvit.cost_model.measuring.measurement import device_name
from jetvit.passes.frontends.capture import export_model
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted
from jetvit.search.calibration.best_plan import Budget
from jetvit.search.calibration.model_latency import (
    FromTable,
    LatencySource,
    MeasuredHere,
    warn_of_doubts,
    warn_of_noise,
)
from jetvit.search.calibration.run_folder import RunFolder, locked_folder, weights_digest
from jetvit.search.calibration.runner import Output
from jetvit.search.calibration.trial import Trial
from jetvit.search.data.processes import Processes, processes_here
from jetvit.search.data.splits import Split, Splits, evenly_spaced
from jetvit.search.data.stream import Inputs, Stream
from jetvit.search.post_training.confirm import Confirmation, refuse_slower
from jetvit.search.post_training.end_to_end import distil, supernet_distillation, train_head, train_on_task
from jetvit.search.post_training.evaluation import EvalResult, Evaluator
from jetvit.search.post_training.feature_extractor import FeatureExtractor
from jetvit.search.post_training.local_distillation import local_distillation
from jetvit.search.post_training.path_search import Evaluations, PathSearch, Searched, refuse_tight_budget
from jetvit.search.post_training.paths import Alternatives
from jetvit.search.post_training.recipe import CHOICES, Recipe
from jetvit.search.post_training.report import MARGIN, report
from jetvit.search.post_training.scores import PathLatency, Scores, score_alone, survivors
from jetvit.search.post_training.shards import shard
from jetvit.search.post_training.student import Student
from jetvit.search.post_training.supernet import Path, Supernet
from jetvit.search.post_training.train import Progress, Run, refuse_half
from jetvit.search.tasks.taps import Taps, WithTokens, task_blocks
from jetvit.search.tasks.task import Task

log = logging.getLogger(__name__)

_AGAIN = "search again in a new folder"

# Images of each split whose targets are looked at before the long work.
_TRIED = 8


def search(
    model: nn.Module | ExportedProgram,
    data: Splits,
    task: Task,
    budget: float | str | None = None,
    *,
    max_full: int | None = None,
    choices: Sequence[Choice] = CHOICES,
    recipe: Recipe | None = None,
    folder: str | os.PathLike[str] | None = None,
    taps: Sequence[str] | None = None,
    head: nn.Module | None = None,
    output: Output = None,
    inputs: Inputs | None = None,
    kwargs: Mapping[str, Any] | None = None,
    costs: DeviceCosts | None = None,
    dtype: str | None = None,
    latency_batch: int = 1,
    precision: str = "fp32",
    seed: int = 0,
    processes: Processes | None = None,
    sharded: bool = False,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Convert most of a model's attentions to linear and window attention, and train them to yield what it yields.

    Args:
        model: a module in eval mode, or an exported program that takes batches of the recipe's size, divided among the
            processes.
        data: images of one size: those that train, those that choose, and those of the report, which are read once.
        task: the head, the loss and the metric.
        budget: a bound on the latency of the whole model: 0 to 1 is a share of the original's, "5ms" is absolute.
        max_full: at how many sites attention may stay full. With neither bound the fastest path is taken that is
            as good as the original on the choosing images.
        choices: what a site may become besides full attention.
        recipe: stages and sizes.
        folder: where progress is kept, beside a trace and metrics.csv; the same call continues a run that was killed.
        taps: names of the blocks whose outputs the head reads; by default as the task says, or where the model has a
            head of its own, those blocks that it reads.
        head: a trained head, in the place of a new one.
        output: which tensor of the model's result is the task's output, where the model has a head of its own.
        inputs: from images to the (args, kwargs) of a call; by default images as the first argument.
        kwargs: keyword arguments for every call, if `inputs` is not given.
        costs: the latencies of the device that the plan is for, if that is not the one that the model is on now.
        dtype: of the model on that device, "float32", "float16" or "bfloat16"; by default what it has here.
        latency_batch: images in the batch whose latency counts; an exported program has its own.
        precision: "bf16" trains under autocast.
        seed: of all that is random. The same seed gives the same plan, also after a kill.
        processes: those that work together; by default those that a launcher has started. They share a file system.
        sharded: whether each of them holds a part of what is trained (FSDP), for models that do not fit otherwise.
        provenance: more entries for the plan's record.
        progress: called with a description, the steps done, and their number.
    Returns:
        A plan with weights. Its record has the metrics of the report with intervals, the splits' hashes, and what it
        was compared with. The head, where one was trained, is in the folder: head.safetensors.
    Raises:
        InputError: data, task, budget or folder that do not fit, or another search that runs in the folder.
        JetvitError: the model has no attention that can be searched; a loss is not finite.
        PlanError: no plan keeps the budget.
    """
    if precision not in ("fp32", "bf16"):
        raise InputError(f"the precision is {precision!r}", do='give "fp32" or "bf16"')
    if not task.labelled and budget is None and max_full is None:
        raise InputError(
            "a search without labels needs a bound",
            why="nothing yields the original's features as well as the original does",
            do="give a budget, or max_full",
        )
    if head is not None and task.taps is None:
        raise InputError("a head was given, and the task takes the model's own output", do="leave one of them out")
    asked = Asked(
        data,
        task,
        budget,
        max_full,
        tuple(choices),
        recipe or Recipe(),
        taps,
        head,
        output,
        costs,
        dtype,
        latency_batch,
        seed,
    )
    processes = processes or processes_here()
    call = inputs or (lambda images: ((images,), dict(kwargs or {})))
    with locked_folder(folder, "search") if folder is not None and processes.first else nullcontext():
        return PostTraining(
            model, asked, call, folder, precision, processes, sharded, provenance or {}, progress or (lambda *_: None)
        ).plan()


@dataclass(frozen=True)
class Asked:
    """What determines a search, as the arguments of `search`."""

    data: Splits
    task: Task
    budget: float | str | None
    max_full: int | None
    choices: tuple[Choice, ...]
    recipe: Recipe
    taps: Sequence[str] | None
    head: nn.Module | None
    output: Output
    costs: DeviceCosts | None
    dtype: str | None
    latency_batch: int
    seed: int


class PostTraining:
    """A search, stage by stage; see `search` for the arguments."""

    def __init__(
        self,
        model: nn.Module | ExportedProgram,
        asked: Asked,
        inputs: Inputs,
        folder: str | os.PathLike[str] | None,
        precision: str,
        processes: Processes,
        sharded: bool,
        provenance: Mapping[str, Any],
        progress: Progress,
    ):
        self.asked, self.recipe, self.task = asked, asked.recipe, asked.task
        self.provenance, self._start = provenance, time.perf_counter()
        if self.recipe.batch % processes.count:
            raise InputError(f"a batch of {self.recipe.batch} cannot be divided among {processes.count} processes")
        if len(asked.data.test) < 2:
            raise InputError("one test image does not tell how sure a metric is", do="give more test images")
        self.batch = self.recipe.batch // processes.count
        self.latency_batch = asked.latency_batch if isinstance(model, nn.Module) else self.batch
        self.budget = None if asked.budget is None else Budget.parse(asked.budget)
        example = torch.stack([asked.data.train[number % len(asked.data.train)].image for number in range(self.batch)])
        tensor = next((each for each in model.parameters() if each.is_floating_point()), example)
        refuse_half([tensor.dtype])
        self.device = tensor.device
        self.inputs: Inputs = lambda images: inputs(images.to(tensor.device, tensor.dtype))
        self.size = int(example.shape[-2]), int(example.shape[-1])
        self.program = export_model(model, *self.inputs(example), None)
        self.net = Supernet(self.program, asked.choices, seed=asked.seed)
        self.sites = self.net.sites
        self.fixed = [site.name for site in self.sites if site.name not in self.net.choice_sites]
        if asked.max_full is not None and asked.max_full < len(self.fixed):
            raise InputError(
                f"{counted(len(self.fixed), 'attention stays', 'attentions stay')} full, "
                f"and max_full is {asked.max_full}",
                why=self.net.kept_full.get(self.fixed[0], "no choice for it is another function than full attention"),
                where=self.fixed[0],
                do="allow more full attention, or give other choices",
            )
        self.run = Run(
            asked.seed,
            None if folder is None else RunFolder(folder, self._config(precision), writes=processes.first),
            device=self.device,
            precision=precision,
            processes=processes,
            progress=progress,
        )
        if self.run.folder is not None and self.run.folder.resumed and processes.first:
            log.info("%s", where_it_resumes(self.run.folder))
        self.confirmation: Confirmation | None = None
        self.sharded = sharded and processes.count > 1
        for site in self.net.choice_sites.values() if self.sharded else ():
            site.shard(processes)
        self.taps = Taps(self.net.model, self._tapped(), self.sites[0])
        self.extractor = FeatureExtractor(self.net, self.taps, self._new_head(), self.inputs, asked.output)
        self.teacher = replace(self.extractor, model=self.net.original)
        self.select = Evaluator(
            self.teacher, self.task, asked.data.select, self.batch, self.run, self.recipe.select_images
        )
        self.alternatives: Alternatives = {
            name: [choice for choice in site.choices if choice != FULL] for name, site in self.net.choice_sites.items()
        }
        self.model, self.example = model, example
        self.latency = self._latencies()
        self.limit_ms = math.inf if self.budget is None else self.budget.limit_ms(self.latency.full_ms)
        self.max_full = None if asked.max_full is None else asked.max_full - len(self.fixed)
        refuse_tight_budget(self.alternatives, self.latency, self.limit_ms, self.max_full)
        self._try_task(example)

    def plan(self) -> Plan:
        """Run all stages that are not done."""
        self._train_head()
        scores, alternatives = self._train_supernet()
        found = self._search_path(scores, alternatives)
        self.confirmation = self._confirm(found)
        student, results = self._train_found(found)
        metrics = report(self.task, results, self.asked.data.test.groups, MARGIN)
        return self._as_plan(student, found, scores, metrics)

    def _train_head(self) -> None:
        head, asked = self.extractor.head, self.asked
        if head is None:
            return
        if asked.head is None and self.task.labelled:
            train_head(self.teacher, self.task, asked.data.train, self.batch, self.recipe.head, self.run)
        head.requires_grad_(False).eval()

    def _train_supernet(self) -> tuple[Scores, Alternatives]:
        """Distil choices by themselves, keep the best few a site, and distil paths; scores of what is left."""
        net, run, recipe = self.net, self.run, self.recipe
        local_distillation(net, self._stream("local"), self.inputs, recipe.local, run)
        scoring = self._stream("score")
        scores = score_alone(net, self.extractor, self.teacher, self.alternatives, scoring, recipe.score_steps, run)
        kept = survivors(scores, self.latency, recipe.survivors)
        supernet_distillation(
            net, self.extractor, self.teacher, self._stream("supernet"), kept, recipe.drawn_full, recipe.supernet, run
        )
        return score_alone(net, self.extractor, self.teacher, kept, scoring, recipe.score_steps, run), kept

    def _search_path(self, scores: Scores, alternatives: Alternatives) -> Searched:
        def measure(path: Path) -> float:
            with self.net.path(path):
                return self._rating(self.extractor, "rating paths")

        found = PathSearch(
            alternatives,
            scores,
            self.latency,
            Evaluations(measure, self.run.folder, "supernet"),
            self.recipe,
            limit_ms=self.limit_ms,
            max_full=self.max_full,
            seed=self.asked.seed,
        )()
        if all(choice == FULL for choice in found.best.path.values()):
            log.warning("no path is as good as the original: every attention stays full")
        else:
            refuse_slower(self.latency.full_ms, found.best.latency_ms, "by what the attentions take")
        if self.run.folder is not None:
            trace = {
                "task": self.task.name,
                "metric": self.task.metric,
                "sites": list(alternatives),
                "scores": {name: {each.label: value for each, value in some.items()} for name, some in scores.items()},
                **found.to_json(),
            }
            self.run.folder.keep("trace", trace)
        return found

    def _confirm(self, found: Searched) -> Confirmation | None:
        """Time the selected path beside the original; None where the latencies are a table's, or nothing changes."""
        run, path = self.run, found.best.path
        if self.asked.costs is not None or all(choice == FULL for choice in path.values()):
            return None
        weights = self.net.plan(path).weights  # by all processes: each may hold a part
        kept: Any = run.folder.kept("confirmation") if run.folder is not None else None
        if run.processes.first and kept is None:
            kept = Confirmation.of(self._measured_here(), path, weights).to_json()
            if run.folder is not None:
                run.folder.keep("confirmation", kept)
        told: list[Any] = run.processes.gather([kept] if run.processes.first else [])
        confirmation = Confirmation.from_json(told[0])
        warn_of_doubts(confirmation.doubts, _AGAIN)
        if not confirmation.doubts:
            if confirmation.speedup[2] < 1:
                refuse_slower(confirmation.full_ms, confirmation.plan_ms, "measured as whole models")
            warn_of_noise(confirmation.speedup, confirmation.plan_ms, confirmation.full_ms)
        return confirmation

    def _train_found(self, found: Searched) -> tuple[Student, dict[str, EvalResult]]:
        """Train the model that was found, and the control; both, and the original, read the test images, once."""
        recipe, run = self.recipe, self.run

        def features_of(extractor: FeatureExtractor) -> Callable[[], float]:
            return lambda: float(self.select(extractor, "validating").errors.mean())

        def task_of(extractor: FeatureExtractor) -> Callable[[], float]:
            return lambda: -self._rating(extractor, "validating")

        student = Student(self.program, self.net.plan(found.best.path))
        extractor = self._reader_of(student)
        if recipe.distil is not None:
            stream = self._stream("distil", recipe.flip)
            distil(student, extractor, self.teacher, stream, recipe.distil, run, features_of(extractor))
        results: dict[str, EvalResult] = {}
        control: FeatureExtractor | None = None
        if recipe.task is not None and self.task.labelled:
            same = Student(self.program, self.net.plan({}))
            control = self._reader_of(same)
            for stage, each, read in (("task", student, extractor), ("control", same, control)):
                stream = self._stream("task", recipe.flip)
                train_on_task(stage, each, read, self.task, stream, recipe.task, run, task_of(read))
        evaluator = Evaluator(self.teacher, self.task, self.asked.data.test, self.batch, run)
        results["original"] = evaluator(self.teacher, "reading the test images: original")
        results["plan"] = evaluator(extractor, "reading the test images: plan")
        if control is not None:
            results["control"] = evaluator(control, "reading the test images: control")
        return student, results

    def _rating(self, extractor: FeatureExtractor, what: str) -> float:
        """The task's metric of a model on the choosing images."""
        return self.task.metrics(self.select(extractor, what, compare=False).counts)[self.task.metric]

    def _reader_of(self, student: Student) -> FeatureExtractor:
        taps = Taps(student.model, self.taps.blocks, self.sites[0])
        if not self.sharded:
            return replace(self.extractor, model=student.model, taps=taps)
        both = WithTokens(student.model, taps)
        shard(both, self.run.processes)
        return replace(self.extractor, model=lambda *args, **kwargs: both(*args, **kwargs)[0], taps=taps)

    def _stream(self, stage: str, flip: bool = False) -> Stream:
        train: Split = self.asked.data.train
        return Stream(train, self.recipe.batch, f"{self.asked.seed} {stage}", self.run.processes, flip=flip)

    def _tapped(self) -> list[str]:
        if self.asked.taps is not None:
            return list(self.asked.taps)
        return task_blocks(self.task, self.net.model, self.sites)

    def _new_head(self) -> nn.Module | None:
        if self.task.taps is None:
            return None
        if self.asked.head is not None:
            return copy.deepcopy(self.asked.head).to(self.run.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.asked.seed)
            return self.task.head(self.taps.channels).to(self.run.device)

    @torch.no_grad()
    def _try_task(self, example: Tensor) -> None:
        """Raise what is wrong with the targets, or with the model's output for them, before the long work."""
        output = self.teacher(example).output.float()
        if len(output) != len(example):
            raise InputError(
                f"the model yields {counted(len(output), 'output')} for {counted(len(example), 'image')}",
                do="give a model of single images",
            )
        for name in ("train", "select", "test"):
            split: Split = getattr(self.asked.data, name)
            targets = [split[place].target for place in evenly_spaced(len(split), _TRIED)]
            if self.task.labelled and any(target is None for target in targets):
                raise InputError(f"{self.task.name} needs labels", why=f"an image of the {name} split has none")
            wanted = [output[:1] if target is None or not self.task.labelled else target[None] for target in targets]
            counts = torch.cat([self.task.counts(output[:1], each.to(output.device)) for each in wanted])
            if self.task.labelled and not math.isfinite(self.task.metrics(counts)[self.task.metric]):
                raise InputError(
                    f"nothing counts in the targets of the {name} images",
                    why=f"{self.task.metric} of {len(targets)} of them has no value",
                    do="check the labels: the number of classes, or the unit and the range of depths",
                )

    def _machine(self) -> str:
        costs = self.asked.costs
        return str(costs.machine) if costs is not None else device_name(self.device)

    def _latencies(self) -> PathLatency:
        """Measured once for all processes and for all that continue the run: another time would be another plan."""
        asked, run = self.asked, self.run
        kept: Any = run.folder.kept("latencies") if run.folder is not None else None
        if run.processes.first and (kept is None or asked.costs is not None):
            source = self._source()
            every = {site.name: self.alternatives.get(site.name, ()) for site in self.sites}
            found = PathLatency.of(source, every).to_json()
            warn_of_doubts(source.doubts, _AGAIN)
            if run.folder is not None and kept is not None and kept != found:
                raise InputError(
                    "the folder holds another search",
                    why="the latency table has changed since",
                    where=str(run.folder.path),
                    do="name a new folder",
                )
            kept = found
            if run.folder is not None:
                run.folder.keep("latencies", kept)
        told: list[Any] = run.processes.gather([kept] if run.processes.first else [])
        return PathLatency.from_json(told[0])

    def _source(self) -> LatencySource:
        """Where latencies come from: the table that was given, or this device."""
        if self.asked.costs is None:
            return self._measured_here()
        program = export_model(self.model, *self.inputs(self._timed_images()), None)
        return FromTable(self.asked.costs, program, self.asked.dtype)

    def _measured_here(self) -> MeasuredHere:
        images = self._timed_images()
        program = export_model(self.model, *self.inputs(images), None)
        # A trial also compares outputs, in two halves: they have to vary in each.
        calls = [self.inputs(each) for each in (images, images, -images, -images)]
        trial = Trial(program, calls, progress=self.run.progress)
        return MeasuredHere(trial, device_name(self.run.device))

    def _timed_images(self) -> Tensor:
        return self.example[:1].expand(self.latency_batch, *self.example.shape[1:]).contiguous()

    def _config(self, precision: str) -> dict[str, Any]:
        """What has to be the same for a run to be continued."""
        asked = self.asked
        return {
            "sites": [site.to_json() for site in self.net.fingerprint.sites],
            "weights": weights_digest(self.program.state_dict),
            "size": list(self.size),
            "splits": asked.data.record(),
            "samples": [_digest_of_samples(each) for each in (asked.data.train, asked.data.select, asked.data.test)],
            "output": asked.output if isinstance(asked.output, int | str) else type(asked.output).__name__,
            "task": repr(asked.task),
            "budget": str(asked.budget),
            "max_full": asked.max_full,
            "choices": [choice.label for choice in asked.choices],
            "recipe": self.recipe.to_json(),
            "taps": list(asked.taps) if asked.taps is not None else None,
            "head": weights_digest(asked.head.state_dict()) if asked.head is not None else None,
            "latencies_of": self._machine(),
            "dtype": asked.dtype,
            "latency_batch": asked.latency_batch,
            "precision": precision,
            "seed": asked.seed,
        }

    def _as_plan(self, student: Student, found: Searched, scores: Scores, metrics: Mapping[str, Any]) -> Plan:
        asked, best, plan = self.asked, found.best, student.plan()
        entries = []
        for site in plan.sites:
            choice = best.path.get(site.name, FULL)
            errors, latencies = scores.get(site.name, {}), self.latency.attention_ms.get(site.name, {})
            entries.append(
                SitePlan(
                    site.name,
                    choice,
                    self._why(site.name, choice),
                    errors.get(choice),
                    latencies.get(choice),
                    tuple(Measured(each, errors.get(each), ms) for each, ms in latencies.items()),
                )
            )
        rated_paths = {"original": found.full, "plan": best, **found.controls}
        record = {
            "made_by": "search",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": device_name(self.run.device),
            "torch": torch.__version__,
            "dtype": str(self.sites[0].dtype).removeprefix("torch."),
            "grid": [int(size) for size in self.sites[0].grid],
            "task": self.task.name,
            "taps": list(self.taps.blocks),
            "seed": asked.seed,
            "budget": None if asked.budget is None else str(asked.budget),
            "max_full": asked.max_full,
            "full_sites": best.full + len(self.fixed),
            "latencies_of": self._machine(),
            "latency_batch": self.latency_batch,
            "precision": self.run.precision,
            **({"confirmed": False} if self.confirmation is None else self.confirmation.record()),
            "estimated_full_ms": round(self.latency.full_ms, 4),
            "estimated_plan_ms": round(best.latency_ms, 4),
            **asked.data.record(),
            "recipe": self.recipe.to_json(),
            "select": {name: rated.value for name, rated in rated_paths.items()},
            "select_ms": {name: round(rated.latency_ms, 4) for name, rated in rated_paths.items()},
            "test": dict(metrics),
            "search_seconds": round(time.perf_counter() - self._start, 1),
            **self.provenance,
        }
        return replace(plan, sites=tuple(entries), provenance=record, size=self.size)

    def _why(self, name: str, choice: Choice) -> str:
        if name in self.net.kept_full:
            return f"full attention: {self.net.kept_full[name]}"
        return f"chosen by {self.task.metric} and latency" if choice != FULL else "full attention was put back here"


def where_it_resumes(folder: RunFolder) -> str:
    """Say where a search resumes."""
    stages = [(name.replace("_", " "), done, steps) for name, done, steps in folder.stages()]
    finished = [name for name, done, _ in stages if done]
    parts = [f"done: {', '.join(finished)}" if finished else "no stage is done"]
    parts += [f"{name} resumes at step {steps + 1}" for name, done, steps in stages if not done]
    if rated := len(folder.evaluations()):
        parts.append(f"{counted(rated, 'path')} rated")
    return f"the search in {folder.path} resumes ({'; '.join(parts)})"


def _digest_of_samples(split: Split) -> str:
    """sha256 of a few samples as they are read: other labels, or another normalisation, are another search."""
    digest = hashlib.sha256()
    for place in evenly_spaced(len(split), _TRIED):
        for tensor in split[place]:
            if tensor is not None:
                digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
