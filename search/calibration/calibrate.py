"""`calibrate`: a plan without training, from measured drift and measured latency.

Every site × every window is tried alone on real images, each choice has its latency, measured at its true shape on the
present device or read from the table of another one, and whole plans are measured until the best within the bounds is
found. Output projections are refitted to each choice, and to each whole plan with the second products of the MLPs, in
closed form. Half of the images are fitted on, a quarter chooses, and a quarter tells what the choice is worth. Without
a refit half of them choose. Linear attention is not tried by default: it is another function of the same weights, and
needs training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from jetvit.cost_model import Choice, Plan
from jetvit.cost_model.optimum import Selection
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.passes.frontends.capture import export_model
from jetvit.patterns.errors import InputError
from jetvit.patterns.site import Sites
from jetvit.patterns.wording import counted
from jetvit.search.calibration.best_plan import Budget, Options, PlanSearch
from jetvit.search.calibration.calibrated_plan import joint_drifts, made_plan, plan_record
from jetvit.search.calibration.choose import Found
from jetvit.search.calibration.measurements import resumes
from jetvit.search.calibration.refitted_plans import refitted_plans
from jetvit.search.calibration.run_folder import locked_folder
from jetvit.search.calibration.runner import Output, as_batches
from jetvit.search.calibration.setup import CalibrationRequest, Setup, prepare
from jetvit.search.calibration.split import LEAST_BATCHES
from jetvit.search.calibration.trial import Metric, Progress

log = logging.getLogger(__name__)

WINDOWS = (8, 16, 32)


def calibrate(
    model: nn.Module | ExportedProgram,
    batches: Sequence[Any],
    max_drift: float = 0.35,
    budget: float | str | None = None,
    output: Output = None,
    *,
    metric: Metric | None = None,
    choices: Sequence[Choice] | None = None,
    costs: DeviceCosts | None = None,
    dtype: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    dynamic: bool = False,
    refit: bool = True,
    folder: str | os.PathLike[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Make a training-free plan for a model, from images of the size that it will be used at.

    The best few plans are timed as whole models before one of them is returned, and the log warns if the rounds cannot
    tell it from the original; one that is slower than the original is not returned. With `costs` nothing is timed.

    Args:
        model: a module in eval mode, or an exported program.
        batches: [B, 3, H, W] tensors of one shape, or (args, kwargs) pairs. With a refit the first half is fitted on,
            the next quarter chooses, and the last is held out, so neighbours should be alike: the frames of a film in
            their order. Without one every second batch is held out of the choice.
        max_drift: the bound on the drift of the model's output over the choosing images; see
            `jetvit.search.tasks.drift`.
        budget: a bound on the model's latency: 0 to 1 is a share of the original's, "5ms" is absolute. The plan is then
            the one of least drift within both bounds.
        output: which tensor of the result to compare: a number, a key, a function of the result; by default the first
            floating-point one.
        metric: another measure of harm than drift, called as metric(output, reference) on each batch, lower is better,
            averaged over batches; `max_drift` bounds it.
        choices: what a site may become besides full attention; windows of 8, 16 and 32 tokens by default.
        costs: the latencies of the device that the plan is for, if that is another one than the model is on now.
        dtype: of the model on that device, "float32", "float16" or "bfloat16"; by default what it has here.
        kwargs: keyword arguments for every batch.
        dynamic_shapes: as `torch.export.export` takes them; the token grid must stay fixed.
        dynamic: refused, for drift and latency are measured at one image size. A plan that is made at one size fits the
            model that `optimize` and `export` capture with `dynamic=True`.
        refit: give the products after a choice new weights, by ridge regression on the images; see
            `search.calibration.refit`. The plan then holds weights, and fits this model alone. With fewer than 8
            batches nothing is refitted, and the log says so.
        folder: keeps every measurement as it is made. The same call resumes a calibration that was killed, and makes
            the same plan.
        provenance: more entries for the plan's record.
        progress: called with a description, the steps done, and their number.
    Returns:
        A plan with every measurement in it. All sites stay full if nothing faster stays within the bound.
    Raises:
        InputError: `dynamic`, no images, images of different shapes, an output that is not finite, a budget that is
            none, an attention whose latency `costs` does not know, a folder of another calibration or one that another
            run uses.
        JetvitError: the model has no full attention that can be rewritten.
        PlanError: no plan meets the budget.
    """
    _refuse_dynamic(dynamic)
    pairs = as_batches(batches, kwargs)
    request = CalibrationRequest(
        max_drift,
        None if budget is None else Budget.parse(budget),
        output,
        metric,
        tuple(choices) if choices is not None else tuple(_window(side) for side in WINDOWS),
        costs,
        dtype,
        refit and len(pairs) >= LEAST_BATCHES,
    )
    program = export_model(model, *pairs[0], dynamic_shapes)
    with locked_folder(folder, "calibration") if folder is not None else nullcontext():
        setup = prepare(program, pairs, request, folder, progress)
        if refit and not request.refit:
            _warn_of_no_refit(len(pairs))
        options = _measure_choices(setup)
        find = _finder(setup, options)
        best = PlanSearch(setup.trial, setup.source, options, max_drift, request.budget, find).best()
        refitted = None
        if setup.refits is not None and any(best.plan.selection):
            refitted = setup.refits.best(options.choices(best.plan.selection))
        drifts = joint_drifts(setup, options, best, refitted)
        record = plan_record(setup, best, drifts, refitted) | dict(provenance or {})
        return made_plan(setup, options, best, record, refitted)


def _measure_choices(setup: Setup) -> Options:
    """Measure the latency and the drift of every choice at every site alone."""
    trial, run, choices = setup.trial, setup.run, setup.request.choices
    alternatives = trial.alternatives(choices)
    if run is not None and run.resumed:
        log.info("%s", resumes(run, setup.kept, sum(map(len, alternatives.values())) * len(trial.selection)))
    _log_left_out(setup.sites, choices, alternatives)
    if setup.refits is not None:
        if without := setup.refits.without:
            log.info("not refitted, without an output projection of their own: %s", ", ".join(without))
        trial.own_weights = setup.refits.alone(alternatives)
    return Options.of(alternatives, setup.source.alone(alternatives), trial.alone(alternatives))


def _finder(setup: Setup, options: Options) -> Callable[[float | None], Found] | None:
    """The search for plans by their drift after a joint refit; None without one."""
    refits, trial, costs = setup.refits, setup.trial, options.costs
    if refits is None:
        return None

    def alone(selection: Selection) -> float:
        return trial.joint(options.choices(selection))

    def together(selection: Selection) -> float:
        return refits.best(options.choices(selection)).drift

    return lambda bound_ms: refitted_plans(costs, alone, together, setup.request.max_drift, bound_ms)


def _refuse_dynamic(dynamic: bool) -> None:
    if dynamic:
        raise InputError(
            "calibrate does not take dynamic=True",
            why="it measures drift and latency, which are those of one image size",
            do="calibrate with images of the size that matters most; the plan fits the model that jetvit.optimize and "
            "jetvit.export capture with dynamic=True",
        )


def _warn_of_no_refit(batches: int) -> None:
    log.warning(
        "nothing is refitted: a refit needs %d batches of images or more, and there are %d. Give more images, or "
        "refit=False (--no-refit)",
        LEAST_BATCHES,
        batches,
    )


def _log_left_out(sites: Sites, choices: Sequence[Choice], alternatives: Mapping[str, Sequence[Choice]]) -> None:
    """Log which attentions and which choices are not tried, with their numbers."""
    if sites.rejected:
        reasons = "; ".join(str(rejection) for rejection in sites.rejected[:3])
        more = f"; and {len(sites.rejected) - 3} more" if len(sites.rejected) > 3 else ""
        log.info("%s cannot be rewritten: %s%s", counted(len(sites.rejected), "attention"), reasons, more)
    untried = {choice: sum(choice not in some for some in alternatives.values()) for choice in choices}
    named = [
        f"{choice.label} at {count} of {counted(len(sites), 'attention')}" for choice, count in untried.items() if count
    ]
    if named:
        log.info("not tried, because the window holds the whole grid: %s", ", ".join(named))


def _window(side: int) -> Choice:
    return Choice("window", window=(side, side))
