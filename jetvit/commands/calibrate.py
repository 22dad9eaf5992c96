"""Make a plan from measured drift and latency, without training."""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import replace
from pathlib import Path

from jetvit.commands.options import DTYPES, add_image_options, add_model_options, add_output_option
from jetvit.commands.outputs import add_force_option, output_plan
from jetvit.commands.progress import progress_bar
from jetvit.commands.requests import ModelRequest, Normalisation
from jetvit.commands.subject import RANDOM, load_subject, made_from, refuse_nan_weights, refuse_rewritten
from jetvit.commands.tables import add_table_option, load_table
from jetvit.cost_model import Plan
from jetvit.explain import explain
from jetvit.models.image_files import ImageFiles
from jetvit.patterns.errors import InputError, PlanError
from jetvit.patterns.wording import counted
from jetvit.search import calibrate
from jetvit.search.calibration.measurements import remove_measurements

LIMIT = 64
DESCRIPTION = """\
Try windows at every attention of a model on your images, time each on this device, and write the fastest plan whose
output drifts no more than --max-drift. The products after a choice get new weights that make up for much of what it
loses: half of the images, in the order of their names, are fitted on, a quarter choose, and a quarter, held out, tell
what the choice is worth. Drift 0 is the original model; 1 is as wrong as its mean for every token. Minutes, no
training. With --table the latencies are those of another device, and nothing is timed: calibrate on a CPU what will run
on a GPU. A calibration that was killed resumes when the same command is run again."""
EPILOG = """\
examples:
  jetvit calibrate hf:dinov3-base --size 704x960 --images photos/ -o plan/
  jetvit calibrate hf:dinov3-base --size 704x960 --images photos/ --budget 5ms -o plan/
  jetvit calibrate timm:vit_base_patch16_224 --weights vit.safetensors --images photos/ --max-drift 0.1 -o plan/
  jetvit calibrate hf:dinov3-base --size 704x960 --images photos/ --table h100.csv --table-dtype bfloat16 -o plan/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit calibrate`."""
    add_image_options(parser, LIMIT)
    parser.add_argument("-o", "--out", metavar="PLAN", required=True, help="the folder that the plan is written to")
    add_force_option(parser)
    parser.add_argument(
        "--folder",
        metavar="RUN",
        help="the folder that keeps the measurements (default: PLAN.run, which is removed once the plan is written)",
    )
    parser.add_argument(
        "--max-drift",
        type=_drift,
        default=0.35,
        metavar="D",
        help='the largest drift allowed (default: 0.35). The table "What drift costs" in the README shows what drift '
        "takes from two tasks",
    )
    parser.add_argument(
        "--budget",
        type=_budget,
        metavar="B",
        help="a share of the full model's latency (0.6) or a time (5ms): then the plan of least drift within it",
    )
    parser.add_argument(
        "--no-refit",
        dest="refit",
        action="store_false",
        help="leave all weights as they are: the plan then fits every model with these attentions, and is slower for "
        "the same drift; half of the images choose, half are held out",
    )
    add_table_option(parser, "take the latencies of the device of this table, and not of the one at hand")
    parser.add_argument(
        "--table-dtype", choices=DTYPES, help="the dtype that the model will have there (default: what it has here)"
    )
    add_output_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Calibrate, save the plan and print what was measured."""
    out = Path(args.out)
    folder = Path(args.folder or f"{out}.run")
    if folder.resolve() == out.resolve():
        args.parser.refuse("--folder and --out name the same folder", "name another folder for the measurements")
    _refuse_unwritable(out)
    with output_plan(out, args.force):
        _calibrate(args, out, folder)


def _calibrate(args: argparse.Namespace, out: Path, measurements: Path) -> None:
    if args.table_dtype is not None and args.table is None:
        raise InputError("--table-dtype is the dtype of a table", do="name the table as well: --table FILE")
    costs = None if args.table is None else load_table(args.table)
    files = ImageFiles.find(args.images, args.limit, strict=args.strict)
    subject = load_subject(ModelRequest.of(args))
    refuse_rewritten(subject)
    folder = subject.images(files, Normalisation.of(args))
    refuse_nan_weights(subject.model)
    with progress_bar() as progress:
        batches = subject.batches(folder, progress)
        if len(batches) < 2:
            raise InputError(
                "one batch of images cannot be halved",
                why="half of the images choose the plan, and the other half check it",
                where=args.images,
                do="give twice as many images or more, or a smaller --batch",
            )
        try:
            plan = calibrate(
                subject.model,
                batches,
                args.max_drift,
                args.budget,
                args.output,
                costs=costs,
                dtype=args.table_dtype,
                refit=args.refit,
                folder=measurements,
                provenance={**made_from(args.model, args.images), "images_sha256": folder.digest()},
                progress=progress,
            )
        except PlanError:  # the calibration is complete: another budget is another one
            if args.folder is None:
                remove_measurements(measurements)
            raise
    plan.save(out)
    if args.folder is None:
        remove_measurements(measurements)
    positional, keywords = batches[0]
    report = replace(explain(subject.model, *positional, plan=plan, kwargs=keywords), model=args.model)
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    print(report)
    print(f"\n{_latencies(plan, subject.batch)}{told_of_refit(plan)}")
    if subject.loaded.random_weights:
        print(f"{RANDOM} Drift on them says nothing about the real model.")
    print(f"wrote the plan to {args.out}")


def _latencies(plan: Plan, batch: int) -> str:
    """Say in a sentence how long the whole model takes."""
    made = plan.provenance
    if "too_busy" in made:
        return "This machine is too busy to time on: what the full model and the plan take is not known."
    if made["confirmed"]:
        return (
            f"The full model takes {made['eager_full_ms']:.4g} ms a batch of {batch}, not compiled, and the plan "
            f"{made['eager_plan_ms']:.4g} ms."
        )
    return (
        f"On {made['latencies_of']} the full model takes about {made['estimated_full_ms']:.4g} ms a batch of {batch}, "
        f"compiled, and the plan {made['estimated_plan_ms']:.4g} ms: estimates, for that device is not here."
    )


def told_of_refit(plan: Plan) -> str:
    """Say in a sentence what the refit was worth."""
    made = plan.provenance
    if "weights_of" not in made:
        return ""
    images = counted(made["images_fitted"], "image")
    if not plan.weights:
        return f"\nA refit on {images} gains nothing, and all weights stay as they are."
    return (
        f"\n{counted(len(plan.weights), 'weight')} of the plan were fitted on {images}: on the held-out ones the drift "
        f"is {made['joint_drift_held_out']:.3f}, and was {made['joint_drift_held_out_before_refit']:.3f} before."
    )


def _refuse_unwritable(folder: Path) -> None:
    """Refuse, before minutes of work, a folder that the plan cannot be written to."""
    above = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not above.is_dir():
        why = f"{above} is a file"
    elif not os.access(above, os.W_OK | os.X_OK):
        why = f"the folder {above} is not writable"
    else:
        return
    raise InputError(f"cannot write the plan {folder}", why=why, do="name a folder that can be written, new or old")


def _drift(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no drift: give a number of 0 or more, such as 0.35")
    return value


def _budget(text: str) -> str:
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ms)?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0 or (match[2] is None and float(match[1]) > 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no budget: give a share of the latency (0.6) or a time (5ms)")
    return match[1] + (match[2] or "").lower()
