"""Does a hybrid with two full blocks, or none, do the task as well as the original? ViT-Tiny, searched and trained.

The original is first fine-tuned at the working resolution: its weights were trained at 224 pixels. The control is that
same model with the extra training that the hybrids get on the task. Hybrids with two full blocks and with none share
everything but the search for the path and what comes after it. All of it goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from benchmarks.local_distillation import NO_DATA
from benchmarks.results import default_path, environment, write_table
from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan
from jetvit.cost_model.predicting.device_costs import DeviceCosts, find_table
from jetvit.models.images import parse_size
from jetvit.models.load import load_model
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns.find import find_sites
from jetvit.search.calibration.run_folder import RunFolder
from jetvit.search.data.splits import Splits
from jetvit.search.data.stream import Stream
from jetvit.search.post_training.end_to_end import train_head, train_on_task
from jetvit.search.post_training.feature_extractor import FeatureExtractor
from jetvit.search.post_training.recipe import Recipe
from jetvit.search.post_training.search import search
from jetvit.search.post_training.student import Student
from jetvit.search.post_training.train import Run, Schedule
from jetvit.search.tasks.taps import Taps, blocks_of, evenly
from jetvit.search.tasks.task import Task

MODEL = "timm:vit_tiny_patch16_224"
CHOICES = (Choice("linear", conv_size=3), Choice("window", window=(8, 8)))
FULL_BLOCKS = (2, 0)
TABLE = "amd-epyc-threads-2"
COLUMNS = (
    *("data", "model", "full_blocks", "metric", "value", "low", "high", "minus_control", "minus_control_low"),
    *("minus_control_high", "non_inferior", "margin", "feature_error", "agreement", "attention", "estimated_ms"),
    *("images", "bootstrap_run", "seed", "steps", "precision", "size", "batch", "minutes"),
)
PROVENANCE = ("latencies_of", "command", "date", "device", "threads", "torch", "jetvit")


def recipe(scale: float, batch: int, distil: int) -> Recipe:
    """The stages of the search; `scale` multiplies the steps of `batch` images. `distil` steps: for a chosen path."""

    def schedule(steps: int, *rates: float) -> Schedule:
        return Schedule(max(2, round(scale * steps)), *rates)

    return Recipe(
        batch=batch,
        head=replace(Recipe().head, steps=max(2, round(scale * 600))),
        local=schedule(160, 5e-4),
        supernet=schedule(240, 3e-4),
        distil=schedule(distil, 3e-4),
        task=schedule(300, 5e-5, 5e-5),
        select_images=24 if scale >= 1 else 4,
        score_steps=4 if scale >= 1 else 1,
        expand=8 if scale >= 1 else 2,
        candidates=12 if scale >= 1 else 2,
    )


def adapted(
    program: ExportedProgram, data: Splits, task: Task, stages: Recipe, schedule: Schedule, run: Run
) -> tuple[ExportedProgram, nn.Module]:
    """The original, fine-tuned on the task with a new head; both."""
    sites = find_sites(ExportedGraph(program))
    same = Student(program, Plan(tuple(SitePlan(site.name, Choice("full")) for site in sites), Fingerprint.of(sites)))
    taps = Taps(same.model, evenly(blocks_of(sites), task.taps or 1), sites[0])
    torch.manual_seed(run.seed)
    head = task.head(taps.channels)
    extractor = FeatureExtractor(same.model, taps, head.to(run.device), lambda images: ((images.to(run.device),), {}))
    train_head(extractor, task, data.train, stages.batch, stages.head, run)
    stream = Stream(data.train, stages.batch, f"{run.seed} teacher", run.processes, flip=True)
    train_on_task("teacher", same, extractor, task, stream, schedule, run)
    return same.program(), head


def rows(
    name: str, task: Task, data: Splits, size: tuple[int, int], scale: float, seed: int, precision: str, folder: Path,
    weights: Path, progress: Any, *, batch: int, distil: int, device: str, table: str,
) -> Iterator[Mapping[str, Any]]:  # fmt: skip
    """The rows of one seed."""
    start = time.perf_counter()
    loaded = load_model(MODEL, weights=weights, model_args={"num_classes": 0, "global_pool": ""}, device=device)
    stages = recipe(scale, batch, distil)
    images = torch.stack([data.train[i].image for i in range(stages.batch)])
    program = export_model(loaded.model, (images.to(device),), {})
    config = {"data": data.record(), "task": repr(task), "recipe": stages.to_json(), "seed": seed, "size": size}
    run = Run(
        seed, RunFolder(folder / "teacher", config), device=torch.device(device), precision=precision, progress=progress
    )
    teacher, head = adapted(program, data, task, stages, Schedule(max(2, round(scale * 450)), 1e-4), run)
    shared = {
        "data": name,
        "metric": task.metric,
        "seed": seed,
        "precision": precision,
        "size": f"{size[0]}x{size[1]}",
        "batch": stages.batch,
        "images": len(data.test),
        "steps": "+".join(str(getattr(stages, stage).steps) for stage in ("local", "supernet", "distil", "task")),
    }  # fmt: skip
    costs = DeviceCosts.load(find_table(table))
    for full in FULL_BLOCKS:
        own = folder / f"full-{full}"
        if full != FULL_BLOCKS[0]:
            _share(folder / f"full-{FULL_BLOCKS[0]}", own, full)
        plan = search(
            teacher, data, task, max_full=full, choices=CHOICES, recipe=stages, folder=own, head=head, costs=costs,
            precision=precision, seed=seed, progress=progress,
        )  # fmt: skip
        plan.save(folder / f"plan-{full}")
        shared |= {"minutes": round((time.perf_counter() - start) / 60, 1), "latencies_of": str(costs.machine)}
        yield from _rows_of(plan, full, shared)


def _rows_of(plan: Plan, full: int, shared: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The hybrid, after the original and the control if these have not been told yet."""
    made = plan.provenance
    test = made["test"]
    kinds = [site.choice for site in plan.sites]
    names = ("original", "control", "plan") if full == FULL_BLOCKS[0] else ("plan",)
    for name in names:
        found = test[name]
        hybrid = name == "plan"
        difference = test["plan_minus_control"] if hybrid else [None] * 3
        yield {
            **shared,
            "model": f"hybrid, {made['full_sites']} full" if hybrid else name,
            "full_blocks": made["full_sites"] if hybrid else len(kinds),
            "value": found[made["test"]["metric"]],
            "low": found["interval"][0],
            "high": found["interval"][1],
            "minus_control": difference[0],
            "minus_control_low": difference[1],
            "minus_control_high": difference[2],
            "non_inferior": test["non_inferior_to_control"] if hybrid else None,
            "margin": test["margin"],
            "feature_error": found["feature_error"],
            "agreement": found["agreement"],
            "attention": " ".join(choice.kind[0].upper() for choice in kinds) if hybrid else "F " * len(kinds),
            "estimated_ms": made["estimated_plan_ms"] if hybrid else made["estimated_full_ms"],
            "bootstrap_run": test["bootstrap_run"],
        }


def _share(source: Path, target: Path, full: int) -> None:
    """Begin a search with the stages of another one that differs from it in `max_full` alone."""
    if target.exists():
        return
    target.mkdir(parents=True)
    for name in ("local_distillation.safetensors", "supernet_distillation.safetensors", "latencies.json"):
        shutil.copy(source / name, target / name)
    shutil.copy(source / "evaluations.jsonl", target / "evaluations.jsonl")
    shutil.copy(source / "control.safetensors", target / "control.safetensors")
    config = json.loads((source / "run.json").read_text(encoding="utf-8"))
    (target / "run.json").write_text(json.dumps({**config, "max_full": full}), encoding="utf-8")


def run_benchmark(description: str, name: str, read: Any, argv: Sequence[str] | None, *, distil: int) -> None:
    """Parse the arguments, measure every seed, write the table.

    read: from (data folder, mean, std, limit, size or None) to (task, splits, size).
    distil: steps that a chosen path is distilled for; depth, a regression, needs more of them than labels do.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("JETVIT_DATA"), help="the folder of weights and images")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of every stage (default: 1)")
    parser.add_argument("--limit", type=int, help="take so many images of each split alone")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="of the images (default: as above)")
    parser.add_argument("--batch", type=int, default=2, help="images a step (default: 2)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", default=TABLE, help=f"the latency table that paths are chosen by (default: {TABLE})")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--folder", type=Path, default=Path("out") / name, help="keeps the progress (default: out/…)")
    parser.add_argument("-o", "--output", type=Path, help="result file; by default under benchmarks/results")
    args = parser.parse_args(argv)
    if args.data is None:
        print(NO_DATA)
        return
    weights = Path(args.data) / "vit_tiny_patch16_224.safetensors"
    loaded = load_model(MODEL, weights=weights)
    assert loaded.mean is not None
    assert loaded.std is not None
    task, data, size = read(Path(args.data), loaded.mean, loaded.std, args.limit, args.size)
    found = []
    for seed in range(args.seeds):
        for row in rows(
            name, task, data, size, args.scale, seed, args.precision, args.folder / str(seed), weights, Say(),
            batch=args.batch, distil=distil, device=args.device, table=args.table,
        ):  # fmt: skip
            found.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    output = args.output or default_path(f"search_{name}").with_suffix(".csv")
    write_table(output, (*COLUMNS, *PROVENANCE), ({**environment(), **row} for row in found))


class Say:
    """Tells the progress in lines, one every half minute."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.perf_counter() - self._last > 30 or done == total:
            self._last = time.perf_counter()
            print(f"{time.strftime('%H:%M:%S')} {what}: {done} of {total}", flush=True)
