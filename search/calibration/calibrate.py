"""`calibrate`: a plan without training, from measured drift and measured latency.

Every site × every window is tried alone on real images, each choice has its latency, measured at its true shape on the
present device or read from the table of another one, and whole plans are measured until the best within the bounds is
found. The output projections are refitted to each choice and to each whole plan, in closed form. Half of the images are
fitted on, a quarter chooses, and a quarter tells what the choice is worth. Without a refit half of them choose. Linear
attention is not tried by default: it is another function of the same weights, and needs training.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from jetvit.cost_model import Choice, Fingerprint, FrontPoint, Plan, base_record, projection_weights, sample_base
from jetvit.cost_model.measuring.measurement import device_name
from jetvit.cost_model.optimum import Selection
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns.errors import InputError, JetvitError
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import AttentionSite, Sites
from jetvit.patterns.wording import counted
from jetvit.search.calibration.best_plan import BestPlan, Budget, Options, PlanSearch
from jetvit.search.calibration.choose import Found
from jetvit.search.calibration.fixed_grids import refuse_open_grids
from jetvit.search.calibration.kept_latencies import KeptLatencies
from jetvit.search.calibration.measurements import Measurements, images_digest, removed_if_refused, resumes
from jetvit.search.calibration.model_latency import (
    FromTable,
    LatencySource,
    MeasuredHere,
    attention_shape,
    warn_of_doubts,
)
from jetvit.search.calibration.refits import Best, Refits
from jetvit.search.calibration.refitted_plans import refitted_plans
from jetvit.search.calibration.run_folder import RunFolder, locked_folder, weights_digest
from jetvit.search.calibration.runner import Batch, Output, as_batches
from jetvit.search.calibration.split import LEAST_BATCHES, Split
from jetvit.search.calibration.trial import Metric, Progress, Trial, alternatives_of

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
        refit: give the output projections new weights, by ridge regression on the images (`search.calibration.refit`).
            The plan then holds weights, and fits this model alone. With fewer than 8 batches nothing is refitted, and
            the log says so.
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
    request = CalibrationRequest(
        max_drift,
        None if budget is None else Budget.parse(budget),
        output,
        metric,
        tuple(choices) if choices is not None else tuple(_window(side) for side in WINDOWS),
        costs,
        dtype,
        refit,
    )
    pairs = as_batches(batches, kwargs)
    request = _without_refit(request, len(pairs)) if refit and len(pairs) < LEAST_BATCHES else request
    program = export_model(model, *pairs[0], dynamic_shapes)
    with locked_folder(folder, "calibration") if folder is not None else nullcontext():
        setup = _prepare(program, pairs, request, folder, progress)
        options = _measure_choices(setup)
        search = PlanSearch(
            setup.trial, setup.source, options, max_drift, request.budget, _finder(setup, options, max_drift)
        )
        best = search.best()
        refitted = None
        if setup.refits is not None and any(best.plan.selection):
            refitted = setup.refits.best(options.choices(best.plan.selection))
        drifts = _joint_drifts(setup, options, best, refitted)
        record = _record(setup, best, drifts, refitted) | dict(provenance or {})
        return _plan(setup, options, best, record, refitted)


@dataclass(frozen=True)
class CalibrationRequest:
    """The options of `calibrate` that determine its plan.

    Raises:
        InputError: max_drift is negative or NaN, or there is a dtype without costs.
    """

    max_drift: float
    budget: Budget | None
    output: Output
    metric: Metric | None
    choices: tuple[Choice, ...]
    costs: DeviceCosts | None
    dtype: str | None
    refit: bool

    def __post_init__(self) -> None:
        if not self.max_drift >= 0:
            raise InputError(f"max_drift is {self.max_drift}", do="give a number of 0 or more")
        if self.dtype is not None and self.costs is None:
            raise InputError("a dtype without costs", do="give both, or load the model in that dtype")

    @property
    def metric_name(self) -> str:
        """The name of the measure of harm."""
        return "drift" if self.metric is None else _name_of(self.metric)


@dataclass(frozen=True)
class _Setup:
    """The values that the steps of a calibration share.

    * program: the model. pairs: the batches. sites: the attentions of the model. device: the name of its device.
    * run: the folder, if any. kept: the measurements in it.
    * trial: measures drift. source: gives latencies. refits: refits choices and plans, if that is asked for.
    """

    request: CalibrationRequest
    program: ExportedProgram
    pairs: list[Batch]
    sites: Sites
    device: str
    run: RunFolder | None
    kept: Measurements
    trial: Trial
    source: LatencySource
    refits: Refits | None


def _prepare(
    program: ExportedProgram,
    pairs: list[Batch],
    request: CalibrationRequest,
    folder: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> _Setup:
    """Find the attentions, open the folder, and run the original model."""
    sites = find_sites(ExportedGraph(program))
    _check_sites(sites)
    device, costs = device_name(sites[0].out.node.meta["val"].device), request.costs
    run = None
    if folder is not None:
        run = RunFolder(folder, _config(program, pairs, request, sites, device), work="calibration")
    kept = Measurements(run)
    split = Split.of(pairs, request.refit)
    with removed_if_refused(run):
        trial = Trial(program, split.selection, request.output, request.metric, progress, kept, split.held_out)
    source: LatencySource = (
        KeptLatencies(MeasuredHere(trial, device), kept) if costs is None else FromTable(costs, program, request.dtype)
    )
    refits = Refits(trial, split.fitted, run) if split.fitted else None
    return _Setup(request, program, pairs, sites, device, run, kept, trial, source, refits)


def _config(
    program: ExportedProgram, pairs: list[Batch], request: CalibrationRequest, sites: Sites, device: str
) -> dict[str, Any]:
    """Return the content of run.json: a folder resumes only with the same one."""
    costs, table = request.costs, None
    if costs is not None:
        known = FromTable(costs, program, request.dtype).alone(alternatives_of(sites, request.choices))
        table = hashlib.sha256(repr(known).encode()).hexdigest()
    return {
        "sites": [site.to_json() for site in Fingerprint.of(sites).sites],
        "weights": weights_digest(program.state_dict),
        "images": images_digest(pairs),
        "batches": len(pairs),
        "max_drift": request.max_drift,
        "budget": None if request.budget is None else request.budget.text,
        "output": request.output if isinstance(request.output, int | str | None) else _name_of(request.output),
        "metric": request.metric_name,
        "choices": [choice.label for choice in request.choices],
        "latencies_of": device if costs is None else str(costs.machine),
        "table": table,
        "dtype": request.dtype,
        "refit": request.refit,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _measure_choices(setup: _Setup) -> Options:
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


def _finder(setup: _Setup, options: Options, max_drift: float) -> Callable[[float | None], Found] | None:
    """The search for plans by their drift after a joint refit; None without one."""
    refits, trial = setup.refits, setup.trial
    if refits is None:
        return None

    def alone(selection: Selection) -> float:
        return trial.joint(options.choices(selection))

    def together(selection: Selection) -> float:
        return refits.best(options.choices(selection)).drift

    costs, alone, together = options.costs, cache(alone), cache(together)
    return lambda bound_ms: refitted_plans(costs, alone, together, max_drift, bound_ms)


def _joint_drifts(setup: _Setup, options: Options, best: BestPlan, refitted: Best | None) -> dict[str, float]:
    """Return the drift of the whole plan on the choosing and on the held-out images; warn where it is too large.

    With a refit also what it was on the held-out images before.
    """
    trial, chosen = setup.trial, options.choices(best.plan.selection)
    drifts = {"joint_drift_selection": best.plan.loss}
    if refitted is None:
        held_out = trial.joint(chosen, held_out=True)
    else:
        held_out = trial.joint(chosen, held_out=True, weights=refitted.refitted.weights, name=refitted.name)
        drifts["joint_drift_held_out_before_refit"] = trial.joint(chosen, held_out=True, weights={}, name="before")
    if trial.held_out and held_out > setup.request.max_drift:
        log.warning("on the held-out images the drift is %.3f, above the bound", held_out)
    warn_of_doubts(setup.source.doubts, "calibrate again")
    return drifts | {"joint_drift_held_out": held_out}


def _record(setup: _Setup, best: BestPlan, drifts: Mapping[str, float], refitted: Best | None) -> dict[str, Any]:
    """Return the provenance of the plan."""
    request, source, trial = setup.request, setup.source, setup.trial
    return {
        **_environment(setup.sites[0], setup.device),
        **source.record(),
        "images_selection": trial.images(held_out=False),
        "images_held_out": trial.images(held_out=True),
        **{name: value for name, value in drifts.items() if math.isfinite(value)},
        "metric": request.metric_name,
        "max_drift": request.max_drift,
        "budget": None if request.budget is None else request.budget.text,
        "confirmed": source.confirms and not source.doubts,
        **best.record("eager" if source.confirms else "estimated"),
        **_refit_record(setup.refits, refitted),
        "calibration_seconds": round(setup.kept.seconds, 1),
    }


def _refit_record(refits: Refits | None, refitted: Best | None) -> dict[str, Any]:
    if refits is None:
        return {"refit": False}
    best = {} if refitted is None else {"weights_of": refitted.name, "refits": refitted.refitted.record()}
    return {"refit": True, "images_fitted": refits.images, **best}


def _plan(setup: _Setup, options: Options, best: BestPlan, record: Mapping[str, Any], refitted: Best | None) -> Plan:
    """Return the plan with all measurements, and the front of the plans that were measured."""
    by_latency = sorted(best.measured, key=lambda each: -each.latency_ms)
    weights = dict(refitted.refitted.weights) if refitted is not None else {}
    projections = projection_weights(setup.sites, setup.program.state_dict)
    return Plan(
        sites=tuple(options.site_plan(index, number) for index, number in enumerate(best.plan.selection)),
        fingerprint=Fingerprint.of(setup.sites),
        provenance=record,
        size=_image_size(setup.pairs[0]),
        weights=weights,
        base_samples=sample_base(projections) if weights else {},
        base={} if weights else base_record(projections),
        front=tuple(
            FrontPoint(sum(map(bool, each.selection)), each.loss, options.attention_ms(each.selection))
            for each in by_latency
            if math.isfinite(each.loss)
        ),
    )


def _without_refit(request: CalibrationRequest, batches: int) -> CalibrationRequest:
    log.warning(
        "nothing is refitted: a refit needs %d batches of images or more, and there are %d. Give more images, or "
        "refit=False (--no-refit)",
        LEAST_BATCHES,
        batches,
    )
    return replace(request, refit=False)


def _refuse_dynamic(dynamic: bool) -> None:
    if dynamic:
        raise InputError(
            "calibrate does not take dynamic=True",
            why="it measures drift and latency, which are those of one image size",
            do="calibrate with images of the size that matters most; the plan fits the model that jetvit.optimize and "
            "jetvit.export capture with dynamic=True",
        )


def _check_sites(sites: Sites) -> None:
    if not sites:
        reasons = "; ".join(str(rejection) for rejection in sites.rejected[:3]) or "there is no attention in the graph"
        raise JetvitError(
            "the model has no full attention that can be rewritten", why=reasons, do="see jetvit.explain for all of it"
        )
    refuse_open_grids(sites, "calibration")


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


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _window(side: int) -> Choice:
    return Choice("window", window=(side, side))


def _environment(site: AttentionSite, device: str) -> dict[str, Any]:
    return {
        "made_by": "calibrate",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(site.dtype).removeprefix("torch."),
        "grid": [int(size) for size in site.grid],
        "batch": attention_shape(site).batch,
    }


def _image_size(batch: Batch) -> tuple[int, int] | None:
    for value in (*batch[0], *batch[1].values()):
        if isinstance(value, Tensor) and value.dim() == 4:
            return int(value.shape[-2]), int(value.shape[-1])
    return None
