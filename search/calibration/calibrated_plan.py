"""The plan that a calibration makes, and its record."""

from __future__ import annotations

import datetime
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from jetvit.cost_model import Fingerprint, FrontPoint, Plan, base_record, projection_weights, sample_base
from jetvit.patterns.site import AttentionSite
from jetvit.search.calibration.best_plan import BestPlan, Options
from jetvit.search.calibration.model_latency import (
    attention_shape,
    warn_of_doubts,
)
from jetvit.search.calibration.refits import Best, Refits
from jetvit.search.calibration.runner import Batch
from jetvit.search.calibration.setup import Setup

log = logging.getLogger(__name__)


def joint_drifts(setup: Setup, options: Options, best: BestPlan, refitted: Best | None) -> dict[str, float]:
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
        more = ": a refit on more images would generalise better" if refitted is not None else ""
        log.warning("on the held-out images the drift is %.3f, above the bound%s", held_out, more)
    warn_of_doubts(setup.source.doubts, "calibrate again")
    return drifts | {"joint_drift_held_out": held_out}


def plan_record(setup: Setup, best: BestPlan, drifts: Mapping[str, float], refitted: Best | None) -> dict[str, Any]:
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


def made_plan(setup: Setup, options: Options, best: BestPlan, record: Mapping[str, Any], refitted: Best | None) -> Plan:
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
