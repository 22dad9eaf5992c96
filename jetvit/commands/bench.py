"""Time a model end to end against compiled full attention."""

from __future__ import annotations

import argparse
import json

from jetvit.api import load_plan
from jetvit.bench import MIN_ROUNDS, MODES, bench
from jetvit.commands.options import add_image_options, add_model_options, add_output_option, at_least
from jetvit.commands.outputs import add_force_option, output_file
from jetvit.commands.progress import progress_bar
from jetvit.commands.requests import ModelRequest, Normalisation
from jetvit.commands.subject import RANDOM, load_subject, refuse_nan_weights, refuse_rewritten
from jetvit.commands.tables import add_table_option, load_table, table_of
from jetvit.files import atomic_write
from jetvit.models.image_files import ImageFiles
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted
from jetvit.search import check_plan

LIMIT = 16
DESCRIPTION = """\
Time three ways to run the model, in one process and in shuffled rounds: as it is, compiled by Inductor, and rewritten
by jetvit and compiled in the same way. The ratio that counts is compiled full attention against compiled jetvit. With
--images, what the plan costs in drift is printed beside it; where there is a latency table of this device, or one is
given, so is what it predicts."""
EPILOG = """\
examples:
  jetvit bench hf:dinov3-base --size 704x960 --plan plan/
  jetvit bench hf:dinov3-base --size 1024x2048 --plan plan/ --device cuda --dtype bfloat16 --mode max-autotune
  jetvit bench timm:vit_base_patch16_224 --plan plan/ --images photos/ --weights vit.safetensors -o bench.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit bench`."""
    parser.add_argument(
        "--plan", metavar="PLAN", help="the folder of a plan, or its plan.json (default: exact rewrites)"
    )
    add_table_option(parser, "compare with the predictions of a table (default: that of this device, if there is one)")
    add_image_options(parser, LIMIT, required=False)
    add_output_option(parser)
    parser.add_argument(
        "--rounds", type=at_least(MIN_ROUNDS), default=20, metavar="N", help="samples of each column (default: 20)"
    )
    parser.add_argument("--mode", choices=MODES, default="default", help="Inductor's mode, for both compiled columns")
    parser.add_argument("--json", action="store_true", help="print JSON, with every sample, instead of a table")
    parser.add_argument("-o", "--out", metavar="FILE", help="write that JSON to a file")
    add_force_option(parser)
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, print, and write what was measured."""
    if args.images and not args.plan:
        raise InputError("--images measures the drift of a plan, and there is no plan", do="give --plan PLAN as well")
    if not args.out:
        print(_measure(args)[0])
        return
    with (
        output_file(args.out, args.force),
        atomic_write(args.out) as stream,
    ):  # refuses a path that cannot be written before the work
        text, document = _measure(args)
        stream.write(document + "\n")
    print(text)
    if not args.json:
        print(f"wrote {args.out}")


def _measure(args: argparse.Namespace) -> tuple[str, str]:
    """Return the text to print and the document to write."""
    plan = load_plan(args.plan)
    files = ImageFiles.find(args.images, args.limit, strict=args.strict) if args.images else None
    subject = load_subject(ModelRequest.of(args))
    refuse_rewritten(subject)
    costs = load_table(args.table) if args.table is not None else table_of(subject.device)
    folder = None if files is None else subject.images(files, Normalisation.of(args))
    refuse_nan_weights(subject.model)
    drift = None
    with progress_bar() as progress:
        if folder is not None and plan is not None:
            batches = subject.batches(folder, progress)
            drift = check_plan(subject.model, plan, batches, output=args.output, progress=progress)
        positional, keywords = subject.example()
        result = bench(
            subject.model,
            *positional,
            plan=plan,
            kwargs=keywords,
            rounds=args.rounds,
            mode=args.mode,
            costs=costs,
            progress=progress,
        )
    measured = None if drift is None else {"drift": drift.drift, "agreement": drift.agreement, "images": drift.images}
    random = subject.loaded.random_weights
    record = {"model": args.model, **result.to_dict(), "quality": measured, "random_weights": random}
    document = json.dumps(record, indent=2)
    lines = [args.model, "", str(result)]
    if drift is not None:
        lines.append(
            f"drift of the plan: {drift.drift:.4f} over {counted(drift.images, 'image')}, "
            f"agreement {drift.agreement:.4f}"
        )
    if random:
        lines.append(RANDOM)
    return document if args.json else "\n".join(lines), document
