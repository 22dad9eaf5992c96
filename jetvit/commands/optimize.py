"""Write the rewritten model as a .pt2 file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.export import ExportedProgram

from jetvit.api import load_plan
from jetvit.bench import count_choices
from jetvit.commands.dynamic import capture_dynamic
from jetvit.commands.options import add_model_options
from jetvit.commands.plain_outputs import with_plain_outputs
from jetvit.commands.subject import Subject, load_subject
from jetvit.cost_model import Plan
from jetvit.files import atomic_path, load_exported
from jetvit.passes.apply_plan import ApplyPlan
from jetvit.passes.capture import capture, export_model
from jetvit.passes.clean_up import CleanUp
from jetvit.passes.normalize import Normalize
from jetvit.passes.pipeline import PassRecord, passes, run_pipeline
from jetvit.patterns.errors import InputError
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import Sites

DESCRIPTION = """\
Rewrite a model by a plan and save the result. Without a plan only exact rewrites are made: the results stay the same up
to rounding. Outputs that are dataclasses (as HuggingFace models return) become dicts in the file. The file takes images
of one size, unless --dynamic leaves it open; a .pt2 file that is rewritten keeps its sizes as they are."""
EPILOG = """\
examples:
  jetvit optimize hf:dinov3-base --size 704x960 --plan plan/ -o fast.pt2
  jetvit optimize hf:dinov3-base --dynamic --plan plan/ -o fast.pt2
  jetvit optimize exported.pt2 --plan plan/ -o fast.pt2

use the file:
  import jetvit, torch              # jetvit registers its operators
  model = torch.export.load("fast.pt2").module()"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jetvit optimize`."""
    parser.add_argument("-o", "--out", metavar="FILE", required=True, help="the .pt2 file to write")
    parser.add_argument("--plan", metavar="PLAN", help="the folder of a plan, or its plan.json")
    add_model_options(parser, dynamic=True)


def run(args: argparse.Namespace) -> None:
    """Write the file and print what was done."""
    if not args.out.endswith(".pt2"):
        onnx = "ONNX output is not supported yet" if args.out.endswith(".onnx") else f"cannot write {args.out}"
        raise InputError(onnx, why="the file written is a program of torch.export", do="name a file that ends in .pt2")
    plan = load_plan(args.plan)
    with atomic_path(args.out) as path:
        subject = load_subject(args)
        graph = capture(_program(subject, args.dynamic))
        sites = find_sites(graph)
        records = run_pipeline(graph, passes(plan))
        torch.export.save(graph.program(), path)
        load_exported(path)  # the file takes its place only if it can be read
    for line in _summary(plan, sites, records):
        print(line)
    print(f"wrote {args.out}; it loads with torch.export.load after `import jetvit`")


def _program(subject: Subject, dynamic: bool) -> ExportedProgram:
    if isinstance(subject.model, ExportedProgram):
        return subject.model
    model: nn.Module = with_plain_outputs(subject.model)
    if dynamic:
        return capture_dynamic(model, subject)
    positional, keywords = subject.example()
    return export_model(model, positional, keywords)


def _summary(plan: Plan | None, sites: Sites, records: Sequence[PassRecord]) -> Iterator[str]:
    if not sites and not sites.rewritten:
        yield "No full attention was found; the model was saved as it is. See `jetvit explain`."
        return
    refused = f", {len(sites.rejected)} refused (see `jetvit explain`)" if sites.rejected else ""
    done = f", {len(sites.rewritten)} rewritten already" if sites.rewritten else ""
    yield f"{len(sites)} attention sites{done}{refused}"
    if plan is None:
        yield "no plan was given: every site keeps full attention, and only exact rewrites were made"
    else:
        yield "by the plan: " + ", ".join(f"{count} {label}" for label, count in count_choices(plan, sites).items())
    inexact_or_tidy = (ApplyPlan.name, Normalize.name, CleanUp.name)
    fired = [f"{each.name} {each.fired}×" for each in records if each.fired and each.name not in inexact_or_tidy]
    yield f"exact rewrites: {', '.join(fired) or 'none'}"
