"""The plan of a search, with its record: the measurements of each site, the bounds, the metrics and the origin."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from jetvit.cost_model import FULL, Choice, Measured, Plan, SitePlan
from jetvit.cost_model.measuring.measurement import device_name
from jetvit.search.post_training.confirm import Confirmation
from jetvit.search.post_training.latencies import timed_device
from jetvit.search.post_training.path_search import Searched
from jetvit.search.post_training.scores import Scores
from jetvit.search.post_training.setup import Setup


def recorded_plan(
    setup: Setup,
    plan: Plan,
    found: Searched,
    scores: Scores,
    confirmation: Confirmation | None,
    metrics: Mapping[str, Any],
) -> Plan:
    """Return a plan with its record.

    Args:
        setup: the search.
        plan: the trained weights.
        found: the result of the path search.
        scores: the error of each choice alone.
        confirmation: the timings of whole models, if any.
        metrics: on the test images.
    """
    entries = tuple(_site_plan(setup, site.name, found, scores) for site in plan.sites)
    record = {
        **_environment(setup),
        "full_sites": found.best.full + len(setup.net.always_full),
        "latencies_of": timed_device(setup.captured, setup.request),
        "latency_batch": setup.captured.latency_batch,
        "precision": setup.run.precision,
        **({"confirmed": False} if confirmation is None else confirmation.record()),
        "estimated_full_ms": round(setup.latency.full_ms, 4),
        "estimated_plan_ms": round(found.best.latency_ms, 4),
        **setup.data.record(),
        "recipe": setup.recipe.to_json(),
        **_select_record(found),
        "test": dict(metrics),
        "search_seconds": round(time.perf_counter() - setup.started_s, 1),
        **(setup.request.provenance or {}),
    }
    return replace(plan, sites=entries, provenance=record, size=setup.captured.size)


def _environment(setup: Setup) -> dict[str, Any]:
    request, site = setup.request, setup.net.sites[0]
    return {
        "made_by": "search",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(setup.run.device),
        "torch": torch.__version__,
        "dtype": str(site.dtype).removeprefix("torch."),
        "grid": [int(size) for size in site.grid],
        "task": setup.task.name,
        "taps": list(setup.extractor.taps.blocks),
        "seed": request.seed,
        "budget": None if request.budget is None else str(request.budget),
        "max_full": request.max_full,
    }


def _select_record(found: Searched) -> dict[str, Any]:
    rated = {"original": found.full, "plan": found.best, **found.controls}
    return {
        "select": {name: each.value for name, each in rated.items()},
        "select_ms": {name: round(each.latency_ms, 4) for name, each in rated.items()},
    }


def _site_plan(setup: Setup, name: str, found: Searched, scores: Scores) -> SitePlan:
    choice = found.best.path.get(name, FULL)
    errors, latencies = scores.get(name, {}), setup.latency.attention_ms.get(name, {})
    measured = tuple(Measured(each, errors.get(each), ms) for each, ms in latencies.items())
    return SitePlan(name, choice, _reason(setup, name, choice), errors.get(choice), latencies.get(choice), measured)


def _reason(setup: Setup, name: str, choice: Choice) -> str:
    if name in setup.net.kept_full:
        return f"full attention: {setup.net.kept_full[name]}"
    return f"chosen by {setup.task.metric} and latency" if choice != FULL else "full attention was put back here"
