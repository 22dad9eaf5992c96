"""What the steps of a calibration share: its options, the model, and what measures it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram

from jetvit.cost_model import Choice, Fingerprint
from jetvit.cost_model.measuring.measurement import device_name
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns.errors import InputError, JetvitError
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import Sites
from jetvit.search.calibration.best_plan import Budget
from jetvit.search.calibration.fixed_grids import refuse_open_grids
from jetvit.search.calibration.kept_latencies import KeptLatencies
from jetvit.search.calibration.measurements import Measurements, images_digest, removed_if_refused
from jetvit.search.calibration.model_latency import (
    FromTable,
    LatencySource,
    MeasuredHere,
)
from jetvit.search.calibration.refits import Refits
from jetvit.search.calibration.run_folder import RunFolder, weights_digest
from jetvit.search.calibration.runner import Batch, Output
from jetvit.search.calibration.split import Split
from jetvit.search.calibration.trial import Metric, Progress, Trial, alternatives_of


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
class Setup:
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


def prepare(
    program: ExportedProgram,
    pairs: list[Batch],
    request: CalibrationRequest,
    folder: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> Setup:
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
    return Setup(request, program, pairs, sites, device, run, kept, trial, source, refits)


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


def _check_sites(sites: Sites) -> None:
    if not sites:
        reasons = "; ".join(str(rejection) for rejection in sites.rejected[:3]) or "there is no attention in the graph"
        raise JetvitError(
            "the model has no full attention that can be rewritten", why=reasons, do="see jetvit.explain for all of it"
        )
    refuse_open_grids(sites, "calibration")


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
