"""Measure the drift of a plan on new images, and the metric of a task beside it."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from jetvit.commands.options import add_image_options, add_model_options, add_output_option
from jetvit.commands.progress import progress_bar
from jetvit.commands.requests import ModelRequest, Normalisation
from jetvit.commands.subject import (
    RANDOM,
    Subject,
    load_subject,
    note,
    refuse_nan_weights,
    refuse_rewritten,
)
from jetvit.commands.tasks import (
    NEEDED,
    add_task_options,
    difference_text,
    refuse_task_usage,
    task_of,
    value_text,
)
from jetvit.cost_model import Plan
from jetvit.models.datasets import find_test_files, read_test_split
from jetvit.models.image_files import ImageFiles
from jetvit.patterns.wording import counted
from jetvit.search import TaskReport, check_plan, check_task
from jetvit.search.tasks.metrics import METRIC_NAMES

LIMIT = 64
DESCRIPTION = """\
Run the original model and the rewritten one on images that the plan was not made from, and compare their outputs.
drift: squared error over the output's own variation; 0 is the original, 1 is as wrong as its mean for every token.
agreement: mean correlation of the two outputs; 1 is the original.

With --data and --task it compares the metric of the task too, with the paired difference and its 95 % interval:
--task segmentation  DIR/val/{images,labels}: a PNG of class numbers for every image; needs --classes, --head
--task depth         DIR/val/{images,depths}: a PNG of depths for every image; needs --dialect, --nearest, --farthest,
                     --depth-scale, --head
--task features      DIR/val/images, or any folder of images, no labels
Without val, DIR/{images,labels} or DIR/{images,depths} will do."""
EPILOG = """\
examples:
  jetvit check hf:dinov3-base --size 704x960 --plan plan/ --images other-photos/
  jetvit check hf:dinov3-base --size 352x480 --plan plan/ --data camvid/ --task segmentation --classes 11
               --head plan.run/head.safetensors
  jetvit check hf:depth-anything-v2 --plan plan/ --data nyu/ --task depth --head model --dialect depth --nearest 0.001
               --farthest 10 --depth-scale 0.001 --crop 45,471,41,601"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit check`."""
    parser.add_argument("--plan", metavar="P", required=True, help="the folder of a plan, or its plan.json")
    add_image_options(parser, LIMIT, required=False, limit_note="; with --data all")
    parser.set_defaults(limit=None)
    parser.add_argument("--data", metavar="DIR", help="the images of a task, laid out as above")
    task = parser.add_argument_group("the task")
    task.add_argument("--task", choices=NEEDED, help="the task whose metric is compared")
    task.add_argument(
        "--head",
        metavar="FILE|model",
        help="the head.safetensors of a search, or model: the model itself makes logits or depth",
    )
    add_task_options(task)
    add_output_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of sentences")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Print drift and agreement, or drift and the metric of a task."""
    _refuse_usage(args)
    plan = Plan.load(args.plan)
    if args.task is None:
        _check_images(args, plan)
    else:
        _check_task(args, plan)


def _refuse_usage(args: argparse.Namespace) -> None:
    """Refuse, with status 2, images of no kind or of both, and options that do not fit the task."""
    if (args.images is None) == (args.data is None):
        advice = "give --images DIR for drift, or --data DIR and --task for the metric of a task"
        args.parser.refuse("check needs either --images or --data", advice)
    if (args.data is None) != (args.task is None):
        args.parser.refuse("--data and --task belong together", "give both, or --images DIR for drift alone")
    refuse_task_usage(args)
    if args.task is not None and task_of(args).labelled and args.head is None:
        advice = "give the head.safetensors of a search, or --head model where the model itself has the head"
        args.parser.refuse(f"--task {args.task} needs --head", advice)


def _check_images(args: argparse.Namespace, plan: Plan) -> None:
    files = ImageFiles.find(args.images, args.limit or LIMIT, strict=args.strict)
    subject = load_subject(ModelRequest.of(args))
    refuse_rewritten(subject)
    folder = subject.images(files, Normalisation.of(args))
    refuse_nan_weights(subject.model)
    with progress_bar() as progress:
        batches = subject.batches(folder, progress)
        report = check_plan(subject.model, plan, batches, output=args.output, progress=progress)
    names = [file.relative_to(folder.path).as_posix() for file in folder.files[: report.images]]
    worst = max(range(report.images), key=report.drift_per_image.__getitem__)
    if args.json:
        per_image = dict(zip(names, report.drift_per_image, strict=True))
        print(json.dumps(asdict(report) | {"drift_per_image": per_image, "worst_image": names[worst]}, indent=2))
        return
    print(
        f"drift      {report.drift:.4f} over {counted(report.images, 'image')} of {subject.size[0]}×{subject.size[1]}"
    )
    print(f"worst      {report.drift_per_image[worst]:.4f} on {names[worst]}")
    print(f"agreement  {report.agreement:.4f}")
    limit = plan.provenance.get("max_drift")
    if isinstance(limit, int | float):
        print(f"The plan was made for a drift of at most {limit:g}.")
    if subject.loaded.random_weights:
        print(f"{RANDOM} Drift on them says nothing about the real model.")


def _check_task(args: argparse.Namespace, plan: Plan) -> None:
    task = task_of(args)
    files = find_test_files(args.data, task, strict=args.strict)
    subject = load_subject(ModelRequest.of(args))
    refuse_rewritten(subject)
    mean, std = subject.normalisation(Normalisation.of(args))
    refuse_nan_weights(subject.model)
    data = read_test_split(
        files,
        task,
        subject.size,
        mean,
        std,
        limit=args.limit,
        depth_scale=args.depth_scale,
        saturated=args.saturated,
    )
    made_from = plan.provenance.get("images")
    if files.path.resolve() == Path(args.data).resolve() and made_from == files.path.resolve().name:
        note(f"the plan was made from a folder {made_from}: images that it was made from tell nothing new")
    with progress_bar() as progress:
        report = check_task(
            subject.model,
            plan,
            data,
            task,
            head=None if args.head == "model" else args.head,
            taps=args.taps,
            output=args.output,
            inputs=subject.call,
            batch=subject.batch,
            progress=progress,
        )
    if args.json:
        print(json.dumps(asdict(report) | {"drift": report.drift if math.isfinite(report.drift) else None}, indent=2))
        return
    for line in _sentences(report, subject, Path(args.data).resolve().name):
        print(line)
    if subject.loaded.random_weights:
        print(f"{RANDOM} Metrics on them say nothing about the real model.")


def _sentences(report: TaskReport, subject: Subject, data: str) -> Iterator[str]:
    """The drift, and the metric of both models with the difference."""
    images = counted(report.images, "image")
    yield f"drift      {report.drift:.4f} over {images} of {subject.size[0]}×{subject.size[1]}"
    yield f"\n{METRIC_NAMES.get(report.metric, report.metric)} on {images} of {data}, with 95 % intervals over images"
    for name in ("original", "plan"):
        low, high = report.record[name]["interval"]
        yield f"  {name:<16} {value_text(report.record[name][report.metric])}   [{value_text(low)}, {value_text(high)}]"
    yield f"  {'plan − original':<16} {difference_text(report.record, 'original')}"
    if not report.record["enough_images"]:
        yield "The images are too few to show that the plan is as good."
