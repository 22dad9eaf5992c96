"""The common part of the commands that write a rewritten model: from the request to the file and its summary."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from jetvit.api import load_plan
from jetvit.bench import count_choices
from jetvit.commands.outputs import output_file
from jetvit.commands.requests import ModelRequest
from jetvit.commands.subject import Subject, load_subject
from jetvit.cost_model import Plan
from jetvit.exporting import ExportJob
from jetvit.passes.frontends.capture import capture, export_model
from jetvit.passes.pipeline import PASSES, PassRecord, RewriteOptions, rewrite
from jetvit.passes.rewrites.apply_plan import ApplyPlan
from jetvit.passes.rewrites.clean_up import CleanUp
from jetvit.passes.rewrites.normalize import Normalize
from jetvit.passes.targets.plain_outputs import with_plain_outputs
from jetvit.patterns.errors import InputError
from jetvit.patterns.site import Sites
from jetvit.patterns.wording import counted


def add_rewrite_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the model is rewritten."""
    parser.add_argument("--plan", metavar="PLAN", help="the folder of a plan, or its plan.json")
    parser.add_argument(
        "--disable",
        metavar="PASS",
        action="append",
        default=[],
        help=f"leave out a pass; may be given several times. The passes, in their order: {', '.join(PASSES)}",
    )


@dataclass(frozen=True)
class RewriteRequest:
    """The model to rewrite, by which plan, without which passes, and whether a file that is there is replaced."""

    model: ModelRequest
    plan: str | None
    disable: tuple[str, ...]
    force: bool

    @classmethod
    def of(cls, args: argparse.Namespace) -> RewriteRequest:
        """Read the arguments of `add_model_options`, `add_rewrite_options` and `add_force_option`."""
        return cls(ModelRequest.of(args), args.plan, tuple(args.disable), args.force)


def rewrite_and_write(request: RewriteRequest, job: ExportJob) -> Iterator[str]:
    """Rewrite a model and write the file; yields lines that say what was done, once it is there.

    The file is compared with the rewritten program on one batch of drawn images.
    """
    plan = load_plan(request.plan)
    options = RewriteOptions(disable=request.disable)
    job.check_place()  # a model may take minutes to load
    _refuse_the_model_itself(request.model.spec, job)
    with output_file(job.path, request.force):
        subject = load_subject(request.model)
        graph = capture(_program(subject, request.model.dynamic))
        rewritten = rewrite(graph, plan, options)
        written = job.write(graph.program(), subject.example())
    yield from _summary(plan, rewritten.sites, rewritten.records)
    if written.error is None:
        yield f"the file was not run here: {written.why_not_run}"
    else:
        yield f"largest error of the file on a batch of drawn images: {written.error:.1e} of the largest output"
    yield f"wrote {job.path}, {written.size / 1e6:.1f} MB; it loads with {job.loads_with}"


def _refuse_the_model_itself(spec: str, job: ExportJob) -> None:
    """Refuse to write over the original: the rewritten model computes another function."""
    if spec.endswith((".pt2", ".onnx")) and Path(spec).resolve() == job.path.resolve():
        raise InputError(
            f"cannot write {job.path}",
            why="it is the model that is to be rewritten",
            do="name another file; the original is needed to make another plan",
        )


def _program(subject: Subject, dynamic: bool) -> ExportedProgram:
    if isinstance(subject.model, ExportedProgram):
        return subject.model
    model: nn.Module = with_plain_outputs(subject.model)
    if dynamic:
        return subject.export_open(model)
    positional, keywords = subject.example()
    return export_model(model, positional, keywords)


def _summary(plan: Plan | None, sites: Sites, records: Sequence[PassRecord]) -> Iterator[str]:
    if not sites and not sites.rewritten:
        refusals = counted(len(sites.rejected), "attention")
        found = f"{refusals} found and refused" if sites.rejected else "No full attention was found"
        yield f"{found}, so that there was nothing for a plan to rewrite; see `jetvit explain`"
        yield f"exact rewrites: {_fired(records)}"
        return
    refused = f", {len(sites.rejected)} refused (see `jetvit explain`)" if sites.rejected else ""
    done = f", {len(sites.rewritten)} rewritten already" if sites.rewritten else ""
    yield f"{counted(len(sites), 'attention site')}{done}{refused}"
    if plan is None:
        kept = "every other site keeps" if sites.rewritten else "every site keeps"
        yield f"no plan was given: {kept} full attention, and only exact rewrites were made"
    else:
        yield "by the plan: " + ", ".join(f"{count} {label}" for label, count in count_choices(plan, sites).items())
    yield f"exact rewrites: {_fired(records)}"


def _fired(records: Sequence[PassRecord]) -> str:
    inexact_or_tidy = (ApplyPlan.name, Normalize.name, CleanUp.name)
    fired = [f"{each.name} {each.fired}×" for each in records if each.fired and each.name not in inexact_or_tidy]
    return ", ".join(fired) or "none"
