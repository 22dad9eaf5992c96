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
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from jetvit.cost_model import Choice, DeviceCosts, Plan, SitePlan, sample_base
from jetvit.passes.capture import export_model
from jetvit.patterns.errors import InputError
from jetvit.search.best_plan import Budget
from jetvit.search.calibration import device_name
from jetvit.search.data import Split, Splits
from jetvit.search.end_to_end import distil, supernet_distillation, train_head, train_on_task
from jetvit.search.exam import Exam, Examiner
from jetvit.search.local_distillation import local_distillation
from jetvit.search.model_latency import FromTable, LatencySource, MeasuredHere
from jetvit.search.path_search import Evaluations, PathSearch, Searched
from jetvit.search.paths import Alternatives
from jetvit.search.processes import Processes, processes_here
from jetvit.search.reader import Reader
from jetvit.search.recipe import CHOICES, Recipe
from jetvit.search.report import report
from jetvit.search.run_folder import RunFolder
from jetvit.search.runner import Output
from jetvit.search.scores import PathLatency, Scores, score_alone, survivors
from jetvit.search.stream import Inputs, Stream
from jetvit.search.student import Student
from jetvit.search.supernet import FULL, Path, Supernet
from jetvit.search.taps import Taps, blocks_of, evenly, read_by_the_head
from jetvit.search.task import Task
from jetvit.search.train import Progress, Run
from jetvit.search.trial import Trial

MARGIN = 0.005
"""Half a point: how far below another metric still counts as not inferior."""


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
    precision: str = "fp32",
    seed: int = 0,
    processes: Processes | None = None,
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
        precision: "bf16" trains under autocast.
        seed: of all that is random. The same seed gives the same plan, also after a kill.
        processes: those that work together; by default those that a launcher has started.
        provenance: more entries for the plan's record.
        progress: called with a description, the steps done, and their number.
    Returns:
        A plan with weights. Its record has the metrics of the report with intervals, the splits' hashes, and what it
        was compared with. The head, where one was trained, is in the folder: head.safetensors.
    Raises:
        InputError: data, task, budget or folder that do not fit.
        JetvitError: the model has no attention that can be searched; a loss is not finite.
        PlanError: no plan keeps the budget.
    """
    if precision not in ("fp32", "bf16"):
        raise InputError(f"the precision is {precision!r}", do='give "fp32" or "bf16"')
    asked = Asked(
        data, task, budget, max_full, tuple(choices), recipe or Recipe(), taps, head, output, costs, dtype, seed
    )
    processes = processes or processes_here()
    call = inputs or (lambda images: ((images,), dict(kwargs or {})))
    return PostTraining(
        model, asked, call, folder, precision, processes, provenance or {}, progress or (lambda *_: None)
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
        provenance: Mapping[str, Any],
        progress: Progress,
    ):
        self.asked, self.recipe, self.task = asked, asked.recipe, asked.task
        self.provenance, self._start = provenance, time.perf_counter()
        if self.recipe.batch % processes.count:
            raise InputError(f"a batch of {self.recipe.batch} cannot be divided among {processes.count} processes")
        self.batch = self.recipe.batch // processes.count
        self.budget = None if asked.budget is None else Budget.parse(asked.budget)
        example = torch.stack([asked.data.train[number % len(asked.data.train)].image for number in range(self.batch)])
        tensor = next((each for each in model.parameters() if each.is_floating_point()), example)
        self.inputs: Inputs = lambda images: inputs(images.to(tensor.device, tensor.dtype))
        self.size = int(example.shape[-2]), int(example.shape[-1])
        self.program = export_model(model, *self.inputs(example), None)
        self.net = Supernet(self.program, asked.choices, seed=asked.seed)
        self.sites = self.net.sites
        self.run = Run(
            asked.seed,
            None if folder is None else RunFolder(folder, self._config(precision), writes=processes.first),
            device=tensor.device,
            precision=precision,
            processes=processes,
            progress=progress,
        )
        self.taps = Taps(self.net.model, self._tapped(), self.sites[0])
        self.reader = Reader(self.net, self.taps, self._new_head(), self.inputs, asked.output)
        self.teacher = replace(self.reader, model=self.net.original)
        self.alternatives: Alternatives = {
            name: [choice for choice in site.choices if choice != FULL] for name, site in self.net.choice_sites.items()
        }
        self.latency = self._latencies(example)

    def plan(self) -> Plan:
        """Run all stages that are not done."""
        self._train_head()
        scores, alternatives = self._train_supernet()
        found = self._search_path(scores, alternatives)
        student, exams = self._train_found(found)
        metrics = report(self.task, exams, self.asked.data.test.groups, MARGIN)
        return self._as_plan(student, found, scores, metrics)

    def _train_head(self) -> None:
        head, asked = self.reader.head, self.asked
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
        scores = score_alone(net, self.reader, self.teacher, self.alternatives, scoring, recipe.score_steps, run)
        kept = survivors(scores, self.latency, recipe.survivors)
        supernet_distillation(
            net, self.reader, self.teacher, self._stream("supernet"), kept, recipe.drawn_full, recipe.supernet, run
        )
        return score_alone(net, self.reader, self.teacher, kept, scoring, recipe.score_steps, run), kept

    def _search_path(self, scores: Scores, alternatives: Alternatives) -> Searched:
        examiner = Examiner(
            self.teacher, self.task, self.asked.data.select, self.batch, self.run, self.recipe.select_images
        )

        def measure(path: Path) -> float:
            with self.net.path(path):
                exam = examiner(self.reader, "rating paths", compare=False)
            return self.task.metrics(exam.counts)[self.task.metric]

        found = PathSearch(
            alternatives,
            scores,
            self.latency,
            Evaluations(measure, self.run.folder, "supernet"),
            self.recipe,
            limit_ms=math.inf if self.budget is None else self.budget.limit_ms(self.latency.full_ms),
            max_full=self.asked.max_full,
            seed=self.asked.seed,
        )()
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

    def _train_found(self, found: Searched) -> tuple[Student, dict[str, Exam]]:
        """Train the model that was found, and the control; both, and the original, read the test images, once."""
        recipe, run = self.recipe, self.run
        student = Student(self.program, self.net.plan(found.best.path))
        reader = self._reader_of(student)
        if recipe.distil is not None:
            distil(student, reader, self.teacher, self._stream("distil", recipe.flip), recipe.distil, run)
        exams: dict[str, Exam] = {}
        control: Reader | None = None
        if recipe.task is not None and self.task.labelled:
            same = Student(self.program, self.net.plan({}))
            control = self._reader_of(same)
            for stage, each, read in (("task", student, reader), ("control", same, control)):
                stream = self._stream("task", recipe.flip)
                train_on_task(stage, each, read, self.task, stream, recipe.task, run)
        examiner = Examiner(self.teacher, self.task, self.asked.data.test, self.batch, run)
        exams["original"] = examiner(self.teacher, "reading the test images: original")
        exams["plan"] = examiner(reader, "reading the test images: plan")
        if control is not None:
            exams["control"] = examiner(control, "reading the test images: control")
        return student, exams

    def _reader_of(self, student: Student) -> Reader:
        return replace(self.reader, model=student.model, taps=Taps(student.model, self.taps.blocks, self.sites[0]))

    def _stream(self, stage: str, flip: bool = False) -> Stream:
        train: Split = self.asked.data.train
        return Stream(train, self.recipe.batch, f"{self.asked.seed} {stage}", self.run.processes, flip=flip)

    def _tapped(self) -> list[str]:
        if self.asked.taps is not None:
            return list(self.asked.taps)
        blocks = blocks_of(self.sites)
        if self.task.taps:
            return evenly(blocks, self.task.taps)
        return read_by_the_head(self.net.model, blocks) or blocks[-1:]

    def _new_head(self) -> nn.Module | None:
        if self.task.taps is None:
            return None
        if self.asked.head is not None:
            return copy.deepcopy(self.asked.head).to(self.run.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.asked.seed)
            return self.task.head(self.taps.channels).to(self.run.device)

    def _latencies(self, example: Tensor) -> PathLatency:
        """Measured once for all processes and for all that continue the run: another time would be another plan."""
        asked, run = self.asked, self.run
        kept = run.folder.kept("latencies") if run.folder is not None else None
        if kept is None and run.processes.first:
            source: LatencySource
            if asked.costs is not None:
                source = FromTable(asked.costs, self.program, asked.dtype)
            else:
                trial = Trial(self.program, [self.inputs(example)] * 2, progress=run.progress)
                source = MeasuredHere(trial, device_name(run.device))
            kept = PathLatency.of(source, self.alternatives).to_json()
            if run.folder is not None:
                run.folder.keep("latencies", kept)
        return PathLatency.from_json(run.processes.gather([kept] if run.processes.first else [])[0])

    def _config(self, precision: str) -> dict[str, Any]:
        """What has to be the same for a run to be continued."""
        asked = self.asked
        samples = sample_base(
            {name: each for name, each in self.program.state_dict.items() if each.is_floating_point()}
        )
        digest = hashlib.sha256(b"".join(each.numpy().tobytes() for each in samples.values()))
        return {
            "sites": [site.to_json() for site in self.net.fingerprint.sites],
            "weights": digest.hexdigest(),
            "size": list(self.size),
            "splits": asked.data.record(),
            "task": repr(asked.task),
            "budget": str(asked.budget),
            "max_full": asked.max_full,
            "choices": [choice.label for choice in asked.choices],
            "recipe": self.recipe.to_json(),
            "taps": list(asked.taps) if asked.taps is not None else None,
            "own_head": asked.head is not None,
            "latencies_of": str(asked.costs.machine) if asked.costs is not None else "here",
            "precision": precision,
            "seed": asked.seed,
        }

    def _as_plan(self, student: Student, found: Searched, scores: Scores, metrics: Mapping[str, Any]) -> Plan:
        asked, best = self.asked, found.best
        entries = []
        for site in student.plan().sites:
            choice = best.path.get(site.name, FULL)
            entries.append(
                SitePlan(
                    site.name,
                    choice,
                    self._why(site.name, choice),
                    scores.get(site.name, {}).get(choice),
                    self.latency.attention_ms.get(site.name, {}).get(choice),
                )
            )
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
            "full_sites": best.full + len(self.net.kept_full),
            "latencies_of": str(asked.costs.machine) if asked.costs is not None else device_name(self.run.device),
            "full_ms": round(self.latency.full_ms, 4),
            "plan_ms": round(best.latency_ms, 4),
            **asked.data.record(),
            "recipe": self.recipe.to_json(),
            "select": {
                "original": found.full.value,
                "plan": best.value,
                **{name: rated.value for name, rated in found.controls.items()},
            },
            "test": dict(metrics),
            "search_seconds": round(time.perf_counter() - self._start, 1),
            **self.provenance,
        }
        return replace(student.plan(), sites=tuple(entries), provenance=record, size=self.size)

    def _why(self, name: str, choice: Choice) -> str:
        if name in self.net.kept_full:
            return f"full attention: {self.net.kept_full[name]}"
        return f"chosen by {self.task.metric} and latency" if choice != FULL else "full attention was put back here"
