"""The sentences of a report: its inputs, its totals, and the device of the latencies."""

from __future__ import annotations

from collections.abc import Iterator

from jetvit.cost_model.predicting.estimate import Estimate
from jetvit.patterns.wording import counted
from jetvit.report.content import ReportContent
from jetvit.report.words import EXTRAPOLATED, interval, number, plain

_DRIFT_LEGEND = (
    "drift: how far the model's output moves if this site alone is changed (0: not at all, 1: as far off as its mean). "
)
_LATENCY_LEGEND = "ms: latency of this attention alone."


def legend(report: ReportContent) -> str:
    """Explain the columns of numbers."""
    planned = report.table is None or report.plan is not None
    return (_DRIFT_LEGEND if planned else "") + _LATENCY_LEGEND


def input_lines(report: ReportContent) -> list[str]:
    """Each input as "pixel_values [B, 3, H, W] float32"."""
    return [f"{name} [{', '.join(map(str, shape))}] {dtype}" for name, shape, dtype in report.inputs]


def totals_lines(report: ReportContent) -> list[str]:
    """Sum up the report, in sentences."""
    return [line for lines in (_counts(report), _latency(report), _drift(report), _costs(report)) for line in lines]


def _counts(report: ReportContent) -> Iterator[str]:
    totals = report.totals
    if not report.rows:
        yield "No attention was found in this model."
        return
    parts = [f"{totals.found} can be rewritten", f"{totals.refused} refused"]
    if totals.rewritten:
        parts.append(f"{totals.rewritten} rewritten already")
    yield f"{counted(len(report.rows), 'attention site')}: {', '.join(parts)}."
    if report.plan is None:
        if totals.found:
            yield "No plan was given: every site keeps full attention."
        return
    if totals.rewritten and not totals.changed:
        yield "The plan has nothing left to change."
        return
    labels = [row.decision for row in report.rows if row.status == "found" and row.decision != "full"]
    tally = ", ".join(f"{labels.count(label)} {label}" for label in dict.fromkeys(labels))
    yield f"The plan changes {totals.changed} of {counted(totals.found, 'site')}{': ' if tally else ''}{tally}."


def _latency(report: ReportContent) -> Iterator[str]:
    totals, plan = report.totals, report.plan
    full, chosen = totals.latency_full_ms, totals.latency_chosen_ms
    if full is None or chosen is None or (plan is None and report.table is None):
        return
    sites = f"{totals.measured} of {counted(totals.found, 'site')}" if totals.measured < totals.found else "all sites"
    start = f"Attention alone, summed over {sites}: {number(full)} ms"
    if plan is None:
        yield f"{start}."
        return
    faster = f" ({full / chosen:.2f}×)" if chosen else ""
    version = f"torch {plan.torch}" if plan.torch else None
    where = ", ".join(each for each in (plan.device, plan.dtype, plan.measured_size, version) if each)
    measured = f", measured on {plain(where)}" if where and report.table is None else ""
    yield f"{start} → {number(chosen)} ms{faster}{measured}."


def _drift(report: ReportContent) -> Iterator[str]:
    plan = report.plan
    if plan is None:
        return
    parts = []
    for drift, images, what in (
        (plan.joint_drift_selection, plan.images_selection, "of the selection"),
        (plan.joint_drift_held_out, plan.images_held_out, "held out"),
    ):
        if drift is not None:
            parts.append(f"{number(drift)} on {'images' if images is None else counted(images, 'image')} {what}")
    limit = f"; at most {number(plan.max_drift)} was asked for" if plan.max_drift is not None else ""
    if parts:
        yield f"Drift of the model's output, all changes together: {', '.join(parts)}{limit}."


def _costs(report: ReportContent) -> Iterator[str]:
    """Whose latencies are shown, and those of the whole model."""
    table = report.table
    if table is None:
        return
    full, plan = report.estimate_full, report.estimate_plan
    parts = [f"about {_estimate(full)}"] if full is not None else []
    parts += [f"with the plan {_estimate(plan)}"] if plan is not None else []
    if parts:
        plainly = "" if table.overheads else "; the plain sum of its operations, for the table has no whole runs"
        yield f"The whole model, compiled: {', '.join(parts)}{plainly}."
    yield (
        f"Latencies: {plain(table.machine)}, torch {plain(table.torch)}; measured there, or predicted with a 90 % "
        "interval [low–high]."
    )
    marked = any(one.extrapolated for row in report.rows for one in row.measured.values())
    if marked or any(each.extrapolated for each in (full, plan) if each is not None):
        yield f"{EXTRAPOLATED} predicted beyond the sizes that the table holds: its interval promises nothing there."


def _estimate(estimate: Estimate) -> str:
    mark = EXTRAPOLATED if estimate.extrapolated else ""
    return f"{number(estimate.ms)} ms {interval(estimate.low, estimate.high)}{mark}"
