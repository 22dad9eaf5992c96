"""What drift costs: ViT-Tiny (real weights) rewritten by many plans, its drift beside the metric of two tasks.

Plans are windows, or linear attention, at some of the twelve blocks, without training. They are chosen from bands of
drift on training images. A linear segmentation head (CamVid, 11 classes, 352×480) and a DPT head (NYU Depth V2,
288×384) are trained once, on the features of the original model and on training images. Neither head is trained again
after a plan. Drift and metrics are measured on the validation images; those of CamVid share a sequence with training
images, so its intervals draw runs of ten frames.

    python -m benchmarks.drift_cost --data DIR [--limit N] [-o FILE]

DIR (or JETVIT_DATA) holds vit_tiny_patch16_224.safetensors, camvid/{train,val}/{images,labels} and
nyuv2/{train,val}/{images,depths}. About twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from benchmarks import search_camvid, search_nyuv2
from benchmarks.drift_cost.plans import Candidate, candidates, spread
from benchmarks.drift_cost.plot import plot
from benchmarks.drift_cost.table import LINEAR, ORDERED, RANDOM
from benchmarks.local_distillation import MODEL, NO_DATA
from benchmarks.parity import Say
from benchmarks.results import default_path, environment, write_table
from jetvit.cost_model import FULL, Choice, Fingerprint, Plan, SitePlan
from jetvit.models.load import load_model
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns.find import find_sites
from jetvit.search.calibration.runner import Runner, pick
from jetvit.search.calibration.trial import Trial
from jetvit.search.data.splits import Splits, collate, evenly_spaced, filled_up
from jetvit.search.post_training.end_to_end import train_head
from jetvit.search.post_training.feature_extractor import FeatureExtractor
from jetvit.search.post_training.recipe import Recipe
from jetvit.search.post_training.report import bootstrap_run
from jetvit.search.post_training.statistics import Difference, paired
from jetvit.search.post_training.student import Student
from jetvit.search.post_training.train import Run
from jetvit.search.tasks.drift import Drift, place_axes
from jetvit.search.tasks.taps import Taps, task_blocks
from jetvit.search.tasks.task import Task

BATCH = 2
# Half of them choose the plans, as in `jetvit calibrate`.
PLAN_IMAGES = 12
DRAWS = 30
PER_BAND = {ORDERED: 3, RANDOM: 3, LINEAR: 1}
TASKS = {"camvid": search_camvid.read, "nyuv2": search_nyuv2.read}
COLUMNS = (
    *("data", "plan", "kind", "attention", "drift", "metric", "original", "value", "difference", "low", "high"),
    *("bootstrap_run", "images", "size", "model", "batch", "seed", "minutes"),
    *("command", "date", "device", "threads", "torch", "jetvit"),
)


class Cost(NamedTuple):
    """The drift of a plan, the metric of the task, and its difference from the original's with a 95 % interval."""

    drift: float
    value: float
    difference: Difference


class Probe:
    """The original model with a head that is trained on its features, and the images that plans are measured on.

    Args:
        model: the model, in eval mode.
        task: the head, its loss and the metric.
        data: `train` trains the head; `test` measures drift and metric.
        recipe: its batch, and the schedule of the head.
        run: the seed and the progress.
    """

    def __init__(self, model: nn.Module, task: Task, data: Splits, recipe: Recipe, run: Run):
        self.task, self.test, self._batch, self._run = task, data.test, recipe.batch, run
        images = collate([data.train[place] for place in range(self._batch)])[0]
        self.program = export_model(model, (images,), {})
        self.sites = find_sites(ExportedGraph(self.program))
        original = self._rewritten({site.name: FULL for site in self.sites})
        self._blocks = task_blocks(task, original, self.sites)
        taps = Taps(original, self._blocks, self.sites[0])
        torch.manual_seed(run.seed)
        self.head = task.head(taps.channels)
        extractor = FeatureExtractor(original, taps, self.head, _call)
        train_head(extractor, task, data.train, self._batch, recipe.head, run)
        self.head.requires_grad_(False).eval()
        self._references, self._counts = self._read(extractor, "original")
        self._places = place_axes(self._references[0], Runner(self.program).channel_axes())
        self.bootstrap_run = bootstrap_run(self.test.groups)

    @property
    def original(self) -> float:
        """The metric of the original model."""
        return self._value(self._counts)

    def cost(self, chosen: Mapping[str, Choice], name: str = "plan") -> Cost:
        """Measure the plan of these choices; `name` is reported to the progress."""
        rewritten = self._rewritten(chosen)
        taps = Taps(rewritten, self._blocks, self.sites[0])
        outputs, counts = self._read(FeatureExtractor(rewritten, taps, self.head, _call), name)
        drift = Drift(self._references, self._places)
        for index, output in enumerate(outputs):
            drift.add(index, output)
        difference = paired(self._value, counts, self._counts, run=self.bootstrap_run)
        return Cost(drift.total, self._value(counts), difference)

    def _rewritten(self, chosen: Mapping[str, Choice]) -> GraphModule:
        sites = tuple(SitePlan(site, choice) for site, choice in chosen.items())
        return Student(self.program, Plan(sites, Fingerprint.of(self.sites))).model

    @torch.no_grad()
    def _read(self, extractor: FeatureExtractor, name: str) -> tuple[list[Tensor], Tensor]:
        """Return the model's output for each batch of test images, and the counts of all of them for the metric."""
        outputs, counts = [], []
        firsts = range(0, len(self.test), self._batch)
        for index, first in enumerate(firsts):
            samples = [self.test[place] for place in range(first, min(first + self._batch, len(self.test)))]
            images, targets = collate(samples)
            assert targets is not None, "the task needs targets"
            reading = extractor(filled_up(images, self._batch))
            outputs.append(pick(reading.result, None)[: len(samples)].float())
            counts.append(self.task.counts(reading.output[: len(samples)], targets))
            self._run.progress(f"{self.task.name}: {name}", index + 1, len(firsts))
        return outputs, torch.cat(counts)

    def _value(self, counts: Tensor) -> float:
        return self.task.metrics(counts)[self.task.metric]


def _call(images: Tensor) -> tuple[tuple[Tensor], dict[str, Any]]:
    return (images,), {}


def choose_plans(probe: Probe, data: Splits, seed: int) -> list[Candidate]:
    """Return the plans to measure, chosen by their drift on training images."""
    places = evenly_spaced(len(data.train), PLAN_IMAGES)
    images = collate([data.train[place] for place in places])[0]
    pairs = [_call(some) for some in images.split(BATCH)]
    return spread(candidates(Trial(probe.program, pairs), DRAWS, seed), PER_BAND)


def rows(data: Path, limit: int | None, seed: int) -> Iterator[Mapping[str, Any]]:
    """Yield a row for each task and plan. The plans are chosen on the images of the first task."""
    start = time.perf_counter()
    run = Run(seed, progress=Say())
    weights = data / "vit_tiny_patch16_224.safetensors"
    plans: list[Candidate] = []
    for name, read in TASKS.items():
        loaded = load_model(MODEL, weights=weights, model_args={"num_classes": 0, "global_pool": ""})
        assert loaded.mean is not None
        assert loaded.std is not None
        task, splits, size = read(data, loaded.mean, loaded.std, limit, None)
        probe = Probe(loaded.model, task, splits, Recipe(batch=BATCH), run)
        plans = plans or choose_plans(probe, splits, seed)
        for number, plan in enumerate(plans):
            cost = probe.cost(plan.chosen, f"plan {number + 1} of {len(plans)}")
            yield {
                "data": name,
                "plan": number + 1,
                "kind": plan.kind,
                "attention": attention(plan.chosen, [site.name for site in probe.sites]),
                "drift": round(cost.drift, 4),
                "metric": task.metric,
                "original": round(probe.original, 4),
                "value": round(cost.value, 4),
                "difference": round(cost.difference.mean, 4),
                "low": round(cost.difference.low, 4),
                "high": round(cost.difference.high, 4),
                "bootstrap_run": probe.bootstrap_run,
                "images": len(splits.test),
                "size": f"{size[0]}x{size[1]}",
                "minutes": round((time.perf_counter() - start) / 60, 1),
            }


def attention(chosen: Mapping[str, Choice], sites: Sequence[str]) -> str:
    """Return the choices block by block in short: F full, L linear, W8 a window of 8×8 tokens."""
    short = []
    for choice in (chosen.get(site, FULL) for site in sites):
        short.append(choice.kind[0].upper() + (str(choice.window[0]) if choice.window is not None else ""))
    return " ".join(short)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the heads, measure the plans, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("JETVIT_DATA"), help="the folder of weights and images")
    parser.add_argument("--limit", type=int, help="take at most this many images of each split")
    parser.add_argument("--seed", type=int, default=0, help="of the heads and the random plans (default: 0)")
    parser.add_argument("-o", "--output", type=Path, help="result file; by default under benchmarks/results")
    args = parser.parse_args(argv)
    if args.data is None:
        print(NO_DATA)
        return
    found = []
    for row in rows(Path(args.data), args.limit, args.seed):
        found.append({**environment(), "model": MODEL, "batch": BATCH, "seed": args.seed, **row})
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    for row in found:
        row["command"] = row["command"].replace(str(args.data), "DIR")
    output = args.output or default_path("drift_cost").with_suffix(".csv")
    write_table(output, COLUMNS, found)
    plot(found, output.with_suffix(".png"))
