"""Latencies from a table for a report: of every choice at every site, and of the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.export import ExportedProgram

from jetvit.cost_model import Choice, Plan, SitePlan
from jetvit.cost_model.measuring.site_operation import site_operation
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.cost_model.predicting.estimate import Estimate
from jetvit.cost_model.predicting.latencies import UnknownLatency
from jetvit.passes.rewrites.plan_checks import covers
from jetvit.patterns.errors import PlanError
from jetvit.patterns.site import AttentionSite, Sites
from jetvit.patterns.sizes import is_static
from jetvit.patterns.wording import counted
from jetvit.report.rows import MeasuredChoice, SiteRow
from jetvit.search.calibration.whole_model import estimate_program, refuse_open_sizes, rewritten_for

# What is shown of every site, whatever a plan measured. A window that covers the grid is left out.
CHOICES = (
    Choice("full"),
    *(Choice("window", window=(side, side)) for side in (8, 16, 32)),
    *(Choice("linear", conv_size=conv_size) for conv_size in (0, 3, 5)),
)
_UNKNOWN: tuple[Any, ...] = (None,)
OPEN_SIZES = (
    "The table tells nothing of {} whose sizes are open: a latency belongs to one batch and image size. Capture the "
    "model at a fixed size."
)


@dataclass(frozen=True)
class TableSource:
    """The source of a report's latencies.

    `machine` ("AMD EPYC with 2 threads") and `torch` are those of the table. `overheads`: whether the table's whole
    runs tell how compiled operations add up; else a whole model is their plain sum.
    """

    machine: str
    torch: str
    overheads: bool

    @classmethod
    def of(cls, costs: DeviceCosts) -> TableSource:
        """The source of these latencies."""
        return cls(str(costs.machine), costs.machine.torch, "compiled" in costs.overheads)


def with_latencies(
    rows: Sequence[SiteRow], sites: Sites, entries: Mapping[str, SitePlan], costs: DeviceCosts
) -> tuple[tuple[SiteRow, ...], list[str]]:
    """The rows with the table's latencies in the place of the plan's, whose drifts stay, and notes on what is missing.

    Args:
        rows: those of `read_rows`.
        sites: of the same graph.
        entries: name of a site → what the plan says about it.
        costs: of the device.
    """
    by_name = {site.name: site for site in sites}
    reader = _Reader(costs)
    found = []
    for row in rows:
        if row.status == "found":
            row = replace(row, measured=reader.read(by_name[row.name], entries.get(row.name), row.measured))
        found.append(row)
    return tuple(found), list(reader.notes())


def estimates(
    program: ExportedProgram, plan: Plan | None, costs: DeviceCosts
) -> tuple[Estimate | None, Estimate | None, list[str]]:
    """The latency of a whole program, compiled: after the exact rewrites, after the plan, and notes on what is missing.

    Args:
        program: the model; it is not changed.
        plan: None gives no second estimate.
        costs: of the device.
    """
    full, why = _estimate(program, None, costs)
    planned, why_not = (None, "") if plan is None else _estimate(program, plan, costs)
    if why:  # as a rule it is the reason for the plan, too
        return full, planned, [f"The latency of the whole model is not known: {why}."]
    return full, planned, [f"The latency of the whole model with the plan is not known: {why_not}."] if why_not else []


def _estimate(program: ExportedProgram, plan: Plan | None, costs: DeviceCosts) -> tuple[Estimate | None, str]:
    """The estimate, or why there is none."""
    try:
        refuse_open_sizes(program)
        return estimate_program(rewritten_for(program, plan, costs), costs), ""
    except UnknownLatency as error:
        return None, str(error)
    except PlanError as error:  # a plan that explain can speak of, and that cannot be applied
        return None, error.what


class _Reader:
    """Reads sites off the table and gathers what it does not know."""

    def __init__(self, costs: DeviceCosts):
        self._costs = costs
        self._open = 0
        self._unknown: dict[str, None] = {}

    def read(
        self, site: AttentionSite, entry: SitePlan | None, recorded: Mapping[str, MeasuredChoice]
    ) -> dict[str, MeasuredChoice]:
        """Each choice of one site by its label. recorded: what the plan says, of which the drifts are taken."""
        choices = {choice.label: choice for choice in CHOICES if not covers(site, choice)}
        if entry is not None:
            choices |= {choice.label: choice for choice in (entry.choice, *(one.choice for one in entry.measured))}
        drifts = {label: one.drift for label, one in recorded.items()}
        sizes = (*site.grid, site.extra_before, site.extra_after, site.out.node.meta["val"].numel())
        latencies: dict[str, tuple[Any, ...]] = {}
        if all(map(is_static, sizes)):
            latencies = {label: found for label, choice in choices.items() if (found := self._look_up(site, choice))}
        else:
            self._open += 1
        labels = [label for label in choices if latencies or drifts.get(label) is not None]
        return {label: MeasuredChoice(drifts.get(label), *latencies.get(label, _UNKNOWN)) for label in labels}

    def notes(self) -> Iterator[str]:
        """Why some latencies are missing."""
        if self._open:
            yield OPEN_SIZES.format("a site" if self._open == 1 else counted(self._open, "site"))
        if self._unknown:
            first, *others = self._unknown
            more = f" (and {len(others)} more like it)" if others else ""
            yield f"The table does not know every latency: {first}{more}."

    def _look_up(self, site: AttentionSite, choice: Choice) -> tuple[Any, ...] | None:
        """The fields of `MeasuredChoice` after the drift."""
        try:
            operation = site_operation(site, choice, gpu=bool(self._costs.machine.cuda))
            answer = self._costs.latencies(operation)
        except (UnknownLatency, ValueError) as error:
            self._unknown[str(error)] = None
            return None
        return answer.ms, answer.low, answer.high, answer.source, answer.extrapolated
