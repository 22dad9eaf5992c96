"""Make a plan with trained weights, for a task and within a latency."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from torch.export import ExportedProgram

from jetvit.commands.options import (
    DTYPES,
    above_zero,
    add_model_options,
    add_normalisation_options,
    add_strict_option,
    at_least,
    latency_budget,
)
from jetvit.commands.outputs import add_force_option, check_plan_folder
from jetvit.commands.progress import progress_bar
from jetvit.commands.requests import ModelRequest, Normalisation
from jetvit.commands.subject import RANDOM, Subject, load_subject, made_from, refuse_nan_weights, refuse_rewritten
from jetvit.commands.tables import add_table_option, load_table
from jetvit.commands.tasks import (
    NEEDED,
    add_task_options,
    difference_text,
    refuse_task_usage,
    task_of,
    value_text,
)
from jetvit.cost_model import Choice, Plan
from jetvit.cost_model.files.lock import locked
from jetvit.cost_model.files.whole_file import write_whole
from jetvit.cost_model.plans.plan_file import PLAN_FILE
from jetvit.models.datasets import find_split_files, read_splits
from jetvit.patterns.errors import InputError, PlanError
from jetvit.patterns.wording import counted
from jetvit.search import Recipe, SearchRequest, search
from jetvit.search.data.processes import Processes, processes_here
from jetvit.search.post_training.pictures import draw
from jetvit.search.post_training.recipe import CHOICES
from jetvit.search.tasks.metrics import METRIC_NAMES

DESCRIPTION = """\
Convert most attentions of a model to linear and window attention, and train the model to yield what it yields now:
every choice by itself, random paths of choices, then the one path that was found. Minutes on a CPU for a small model,
hours on a GPU for a large one. A search that is killed goes on where it was when the same command is run again.

--task segmentation  DIR/{train,val}/{images,labels}: a PNG of class numbers for every image; needs --classes
--task depth         DIR/{train,val}/{images,depths}: a PNG of depths for every image; needs --dialect, --nearest,
                     --farthest and --depth-scale
--task features      any folder of images, no labels: the model's features stay as they are

A fifth of train chooses the plan. What is in val is read once, in the end: the original, the plan and, where there are
labels, a control, the original with the same training on the task. Without labels, a tenth chooses and a tenth tests.
With neither --budget nor --max-full, the fastest plan is taken that is as good as the original on choosing images."""
EPILOG = """\
examples:
  jetvit search hf:dinov3-base --size 352x480 --data camvid/ --task segmentation --classes 11 --budget 0.6 -o plan/
  jetvit search hf:dinov3-base --size 352x480 --data photos/ --task features --max-full 2 -o plan/
  jetvit search hf:depth-anything-v2 --data nyu/ --task depth --head model --dialect depth --nearest 0.001 --farthest 10
                --depth-scale 0.001 --crop 45,471,41,601 --table h100.csv --table-dtype bfloat16 --budget 5ms -o plan/

on several GPUs, each with its part of a batch:
  torchrun --nproc-per-node 4 -m jetvit search hf:dinov3-base --device cuda --batch 16 --precision bf16 …

the plan is used as any other:
  jetvit optimize hf:dinov3-base --size 352x480 --plan plan/ -o fast.pt2"""

WRITTEN = "written.sha256"  # in the folder of a search: of every plan.json that it wrote


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit search`."""
    parser.add_argument("--data", dest="images", metavar="DIR", required=True, help="the images, laid out as above")
    parser.add_argument("--task", choices=NEEDED, required=True, help="what the model is for")
    parser.add_argument("-o", "--out", metavar="PLAN", required=True, help="the folder that the plan is written to")
    add_force_option(parser)
    parser.add_argument(
        "--folder",
        metavar="RUN",
        help="the folder that keeps progress, pictures, metrics.csv and the trained head (default: PLAN.run)",
    )
    parser.add_argument(
        "--budget", type=latency_budget, metavar="B", help="a share of the original's latency (0.6) or a time (5ms)"
    )
    parser.add_argument(
        "--max-full", type=at_least(0), metavar="N", help="at most N attentions stay full, whatever the latency"
    )
    default = ",".join(choice.label for choice in CHOICES)
    parser.add_argument(
        "--choices",
        type=_choices,
        default=CHOICES,
        metavar="C,…",
        help="what an attention may become, such as 'linear conv3,linear hedgehog,window 8,window 8x16' "
        f"(default: {default})",
    )
    parser.add_argument(
        "--effort",
        type=above_zero("effort", "give a number above 0, such as 0.5"),
        default=1.0,
        metavar="F",
        help="F times the steps of training, for all stages (default: 1)",
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 trains under autocast")
    parser.add_argument(
        "--sharded", action="store_true", help="with torchrun: each process holds a part of what is trained (FSDP)"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of all that is random (default: 0)")
    add_table_option(parser, "take the latencies of the device of this table, and not of the one at hand")
    parser.add_argument(
        "--table-dtype", choices=DTYPES, help="the dtype that the model will have there (default: what it has here)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    task = parser.add_argument_group("the task")
    task.add_argument(
        "--head",
        choices=("task", "model"),
        help="who makes logits or depth of the features: a new head that is trained first, or the model itself "
        "(default: task)",
    )
    add_task_options(task)
    _add_data_options(parser)
    add_model_options(parser, batch=Recipe.batch)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    add_normalisation_options(parser)
    add_strict_option(parser)
    parser.add_argument(
        "--select",
        action="append",
        metavar="GROUP",
        help="images of this film choose the plan, by the part of their names before the last _; can be repeated "
        "(default: a fifth of the images)",
    )
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="at most N images of each split, evenly spaced")


def run(args: argparse.Namespace) -> None:
    """Search, save the plan and print what it reaches."""
    _refuse_usage(args)
    out = Path(args.out)
    if out.is_file():
        raise InputError(f"cannot write the plan {out}", why="it is a file", do="name a folder, new or old")
    folder = Path(args.folder or f"{out}.run")
    force = args.force or _was_written_from(folder, out)
    apart = out.resolve() != folder.resolve()  # a search locks its own folder
    if apart:
        check_plan_folder(out, force)
    processes = processes_here()  # before the model is loaded: it settles which GPU --device cuda is
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with locked(out) if processes.first and apart else nullcontext():
        _search(args, out, folder, processes)


def _search(args: argparse.Namespace, out: Path, folder: Path, processes: Processes) -> None:
    costs = None if args.table is None else load_table(args.table)
    task = task_of(args)
    files = find_split_files(args.images, task, strict=args.strict)
    subject = load_subject(ModelRequest.of(args))
    if not subject.dtype.is_floating_point:
        raise InputError(
            f"the model takes {subject.dtype} images",
            why="a search trains on normalised images, which are floating-point numbers",
            do="export the model from behind the normalisation of its images",
        )
    refuse_rewritten(subject)
    mean, std = subject.normalisation(Normalisation.of(args))
    refuse_nan_weights(subject.model)
    data = read_splits(
        args.images,
        task,
        subject.size,
        mean,
        std,
        limit=args.limit,
        select=args.select,
        depth_scale=args.depth_scale,
        saturated=args.saturated,
        files=files,
    )
    recipe = _recipe(args, subject)
    with progress_bar() as progress:
        request = SearchRequest(
            budget=args.budget,
            max_full=args.max_full,
            choices=args.choices,
            recipe=recipe,
            folder=folder,
            taps=args.taps,
            inputs=subject.loaded.inputs,
            costs=costs,
            dtype=args.table_dtype,
            precision=args.precision,
            seed=args.seed,
            processes=processes,
            sharded=args.sharded,
            provenance=made_from(args.model, args.images),
            progress=progress,
        )
        plan = search(subject.model, data, task, request=request)
    if not processes.first:
        return
    plan.save(out)
    write_whole(folder / WRITTEN, "".join(f"{each}\n" for each in [*_written(folder), _digest(out)]).encode())
    draw(folder)
    if args.json:
        choices = {site.name: site.choice.label for site in plan.sites}
        print(json.dumps({"choices": choices, "provenance": dict(plan.provenance)}, indent=2))
        return
    for line in _report(plan, recipe):
        print(line)
    if subject.loaded.random_weights:
        print(f"{RANDOM} Metrics on them say nothing about the real model.")
    head = folder / "head.safetensors"
    if head.exists():
        print(f"the head that was trained on the original is in {head}")
    print(f"wrote the plan to {args.out}; pictures of the search, its trace and metrics.csv are in {folder}")


def _was_written_from(folder: Path, out: Path) -> bool:
    """Report whether the plan in `out` is the result of the search in `folder`, which would write it again."""
    return (out / PLAN_FILE).is_file() and _digest(out) in _written(folder)


def _written(folder: Path) -> list[str]:
    record = folder / WRITTEN
    return record.read_text(encoding="utf-8").split() if record.is_file() else []


def _digest(out: Path) -> str:
    return hashlib.sha256((out / PLAN_FILE).read_bytes()).hexdigest()


def _refuse_usage(args: argparse.Namespace) -> None:
    """Refuse, with status 2, what a task lacks and what is of another task."""
    refuse_task_usage(args)
    if args.table_dtype is not None and args.table is None:
        args.parser.refuse("--table-dtype is the dtype of a table", "name the table as well: --table FILE")


def _recipe(args: argparse.Namespace, subject: Subject) -> Recipe:
    """The default, with the batch of the model and as many times the steps as was asked for."""
    recipe = Recipe(batch=subject.batch if isinstance(subject.model, ExportedProgram) else args.batch or Recipe.batch)
    stages = {name: getattr(recipe, name) for name in ("head", "local", "supernet", "distil", "task")}
    scaled = {name: replace(each, steps=max(1, round(args.effort * each.steps))) for name, each in stages.items()}
    return replace(recipe, **scaled)


def _report(plan: Plan, recipe: Recipe) -> Iterator[str]:
    """Say what was selected, what it reaches on the test images, and what else was tried on the choosing images."""
    made = plan.provenance
    test, metric = made["test"], made["test"]["metric"]
    name = METRIC_NAMES.get(metric, metric)
    choices = Counter(site.choice.label for site in plan.sites)
    yield f"{counted(len(plan.sites), 'attention')}: " + ", ".join(f"{n} {label}" for label, n in choices.most_common())
    full_ms, plan_ms = made["estimated_full_ms"], made["estimated_plan_ms"]
    yield (
        f"{full_ms:.4g} → {plan_ms:.4g} ms a batch of {made['latency_batch']} on {made['latencies_of']}, by what "
        f"single attentions take: {full_ms / plan_ms:.3g}× as fast"
    )
    if "too_busy" in made:
        yield "this machine is too busy to time whole models on: that they are faster is not confirmed"
    elif made["confirmed"]:
        middle, low, high = made["speedup"]
        yield (
            f"{made['eager_full_ms']:.4g} → {made['eager_plan_ms']:.4g} ms as whole models, not compiled: "
            f"{middle:.3g}× as fast (95 % interval {low:.3g} to {high:.3g})"
        )
    yield (
        f"\n{name} on {counted(made['images_test'], 'test image')} of {made['images']}, seed {made['seed']}, "
        "with 95 % intervals over images"
    )
    compared = [each for each in ("original", "control") if each in test]
    for each in ("original", "plan", *compared[1:]):
        low, high = test[each]["interval"]
        same = "  the original with the same training on the task" if each == "control" else ""
        yield f"  {each:<16} {value_text(test[each][metric])}   [{value_text(low)}, {value_text(high)}]{same}"
    for each in compared:
        yield f"  {f'plan − {each}':<16} {difference_text(test, each)}"
    if made.get("test_shares_with_train"):
        yield f"  not independent: images of {', '.join(made['test_shares_with_train'])} are in train and in test"
    chosen_on = min(recipe.select_images, made["images_select"])
    images = counted(chosen_on, "image")
    yield f"\n{name} on {images}, which the plan was chosen by, with the weights that all paths share"
    for each, value in made["select"].items():
        yield f"  {each:<24} {value_text(value)}   {made['select_ms'][each]:.4g} ms"
    yield ""


def _choices(text: str) -> tuple[Choice, ...]:
    return tuple(map(_choice, text.split(",")))


def _choice(text: str) -> Choice:
    words = " ".join(text.split())
    linear = re.fullmatch(r"linear(?: ([a-z_]+))?(?: conv([0-9]+))?", words)
    window = re.fullmatch(r"window ([0-9]+)(?:x([0-9]+))?", words)
    try:
        if linear:
            return Choice("linear", feature_map=linear[1], conv_size=int(linear[2] or 0))
        if window:
            return Choice("window", window=(int(window[1]), int(window[2] or window[1])))
    except PlanError as error:
        raise argparse.ArgumentTypeError(f"{words!r} is no choice: {error.why}") from error
    raise argparse.ArgumentTypeError(
        f"{words!r} is no choice: write 'linear', 'linear conv3', 'window 8' or 'window 8x16'"
    )
