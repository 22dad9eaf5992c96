"""Latencies for a search: of paths, from a table or measured on this device, and of whole models."""

from __future__ import annotations

from typing import Any

from jetvit.cost_model.measuring.measurement import device_name
from jetvit.patterns.errors import InputError
from jetvit.search.calibration.model_latency import FromTable, LatencySource, MeasuredHere, warn_of_doubts
from jetvit.search.calibration.trial import Trial
from jetvit.search.post_training.captured import CapturedModel
from jetvit.search.post_training.paths import Alternatives
from jetvit.search.post_training.request import SearchRequest
from jetvit.search.post_training.scores import PathLatency
from jetvit.search.post_training.train import Progress, Run

AGAIN = "search again in a new folder"
"""The remedy for latencies that were measured on a busy device."""


def timed_device(captured: CapturedModel, request: SearchRequest) -> str:
    """Name the device whose latencies count: the one of the table, or the one that the model is on."""
    return str(request.costs.machine) if request.costs is not None else device_name(captured.device)


def measured_here(captured: CapturedModel, progress: Progress) -> MeasuredHere:
    """Return a source that measures on the device of the model."""
    images = captured.timed_images()
    # A trial also compares outputs, in two halves: they have to vary in each.
    calls = [captured.inputs(each) for each in (images, images, -images, -images)]
    trial = Trial(captured.timed_program(), calls, progress=progress)
    return MeasuredHere(trial, device_name(captured.device))


def path_latency(captured: CapturedModel, request: SearchRequest, alternatives: Alternatives, run: Run) -> PathLatency:
    """Measure latencies once for all processes and all resumptions of a run: another time would be another plan.

    Args:
        captured: the model.
        request: the table, if any.
        alternatives: the choices of every site, also of those that stay full.
        run: the processes, and the folder that keeps the latencies.
    Raises:
        InputError: the folder keeps latencies of another table.
    """
    kept: Any = run.folder.kept("latencies") if run.folder is not None else None
    if run.processes.first and (kept is None or request.costs is not None):
        source = _source(captured, request, run.progress)
        found = PathLatency.of(source, alternatives).to_json()
        warn_of_doubts(source.doubts, AGAIN)
        if run.folder is not None and kept is not None and kept != found:
            raise InputError(
                "the folder holds another search",
                why="the latency table has changed since",
                where=str(run.folder.path),
                do="name a new folder",
            )
        kept = found
        if run.folder is not None:
            run.folder.keep("latencies", kept)
    gathered: list[Any] = run.processes.gather([kept] if run.processes.first else [])
    return PathLatency.from_json(gathered[0])


def _source(captured: CapturedModel, request: SearchRequest, progress: Progress) -> LatencySource:
    if request.costs is None:
        return measured_here(captured, progress)
    return FromTable(request.costs, captured.timed_program(), request.dtype)
