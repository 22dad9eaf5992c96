"""Measure the drift of a plan on new images."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from jetvit.commands.options import add_image_options, add_model_options, add_output_option
from jetvit.commands.progress import progress_bar
from jetvit.commands.subject import RANDOM, find_images, load_subject, refuse_nan_weights, refuse_rewritten
from jetvit.cost_model import Plan
from jetvit.patterns.wording import counted
from jetvit.search import check_plan

LIMIT = 64
DESCRIPTION = """\
Run the original model and the rewritten one on images that the plan was not made from, and compare their outputs.
drift: squared error over the output's own variation; 0 is the original, 1 is as wrong as its mean for every token.
agreement: mean correlation of the two outputs; 1 is the original."""
EPILOG = """\
example:
  jetvit check hf:dinov3-base --size 704x960 --plan plan/ --images other-photos/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit check`."""
    parser.add_argument("--plan", metavar="P", required=True, help="the folder of a plan, or its plan.json")
    add_image_options(parser, LIMIT)
    add_output_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of sentences")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Print drift and agreement."""
    plan = Plan.load(args.plan)
    files = find_images(args)
    subject = load_subject(args)
    refuse_rewritten(subject)
    folder = subject.images(args, files)
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
