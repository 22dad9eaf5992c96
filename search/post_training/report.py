"""Report the metrics of the rewritten model, the original and the control, on images that the search has not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jetvit.search.post_training.evaluation import EvalResult
from jetvit.search.post_training.statistics import interval, non_inferior, paired
from jetvit.search.tasks.task import Task

MARGIN = 0.005
"""Half a point: how far below another metric still counts as not inferior."""

# Frames of a film that stay alike.
_RUN = 10
# Independent draws that an interval has to come from.
_RUNS = 10


def report(task: Task, results: Mapping[str, EvalResult], groups: Sequence[str], margin: float) -> dict[str, Any]:
    """Entries for a plan's provenance.

    Args:
        task: the task of the search.
        results: of "original", "plan" and, if there is one, "control", on the same images.
        groups: what each image was taken from; frames of one film are drawn in runs. Fewer than ten runs, or images,
            show that nothing is not inferior.
        margin: by how much the plan's metric may be below another's, and still count as not inferior.
    """
    run = bootstrap_run(groups)
    # Of a few runs every draw is nearly the same, and an interval far too narrow to show anything.
    enough = len(groups) >= _RUNS * run

    def value(counts: Any) -> float:
        return task.metrics(counts)[task.metric]

    found: dict[str, Any] = {"metric": task.metric, "bootstrap_run": run, "enough_images": enough}
    for name, result in results.items():
        low, high = interval(value, result.counts, run=run)
        found[name] = {metric: _digits(each) for metric, each in task.metrics(result.counts).items()}
        found[name]["interval"] = [_digits(low), _digits(high)]
        found[name]["feature_error"] = _digits(float(result.errors.mean()))
        found[name]["agreement"] = _digits(float(result.agreement.mean()))
    for name in results:
        if name != "plan":
            difference = paired(value, results["plan"].counts, results[name].counts, run=run)
            found[f"plan_minus_{name}"] = [_digits(each) for each in difference]
            found[f"non_inferior_to_{name}"] = enough and non_inferior(difference, margin)
    found["margin"] = margin
    return found


def bootstrap_run(groups: Sequence[str]) -> int:
    """Return how many images in a row each draw of an interval takes: 10 for frames of films, 1 for unrelated images.

    Args:
        groups: the film of each image; "" where it is unknown.
    """
    films = len(set(groups)) < len(groups) and any(groups)
    return max(1, min(_RUN, len(groups) // 2)) if films else 1


def _digits(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
