"""List the attention of a model, and what a plan makes of it."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from torch import nn

from jetvit.api import load_plan
from jetvit.commands.options import add_model_options
from jetvit.commands.outputs import add_force_option, output_file
from jetvit.commands.requests import ModelRequest
from jetvit.commands.subject import load_subject
from jetvit.commands.tables import add_table_option, load_table
from jetvit.cost_model import Plan
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.explain import explain
from jetvit.files import atomic_path
from jetvit.report.report import Report

DESCRIPTION = """\
List every attention of a model: which can be rewritten, and why the others cannot, with the line of their source.
With a plan: what becomes of each, and what was measured. With a latency table: what each choice takes at each site, and
what the whole model takes, as measured on the table's device or predicted. Nothing is measured or changed."""
EPILOG = """\
examples:
  jetvit explain timm:vit_base_patch16_224 --size 704x960
  jetvit explain hf:dinov3-base --plan plan/ --html report.html
  jetvit explain hf:dinov3-base --size 704x960 --table h100.csv"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit explain`."""
    parser.add_argument("--plan", metavar="P", help="the folder of a plan, or its plan.json")
    add_table_option(parser, "take latencies from a table")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--html", metavar="F", help="write a page with pictures instead")
    add_force_option(parser)
    add_model_options(parser, dynamic=True)


def run(args: argparse.Namespace) -> None:
    """Print the report, or write it."""
    plan = load_plan(args.plan)
    costs = None if args.table is None else load_table(args.table)
    if args.html is not None:
        with (
            output_file(args.html, args.force),
            atomic_path(args.html) as page,
        ):  # refuses a path that cannot be written before the model is loaded
            _report(ModelRequest.of(args), plan, costs).to_html(page)
        print(f"wrote {args.html}")
        return
    report = _report(ModelRequest.of(args), plan, costs)
    print(json.dumps(report.to_dict(), indent=2) if args.json else report)


def _report(request: ModelRequest, plan: Plan | None, costs: DeviceCosts | None) -> Report:
    subject = load_subject(request)
    if request.dynamic and isinstance(subject.model, nn.Module):
        report = explain(subject.export_open(subject.model), plan=plan, costs=costs)
    else:
        positional, keywords = subject.example()
        report = explain(subject.model, *positional, plan=plan, kwargs=keywords, costs=costs)
    return replace(report, model=request.spec)
