"""`ReportContent`: the findings of `explain` as values, before any of them is text or a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jetvit.cost_model.predicting.estimate import Estimate
from jetvit.report.costs import TableSource
from jetvit.report.plan import PlanSummary
from jetvit.report.rows import SiteRow

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Totals:
    """Counts of attentions, and their latencies.

    `changed` are the found sites that the plan changes. `latency_full_ms` and `latency_chosen_ms` are sums over the
    `measured` sites of which both are known, each attention alone; None where there is no such site.
    """

    found: int
    refused: int
    rewritten: int
    changed: int
    measured: int
    latency_full_ms: float | None
    latency_chosen_ms: float | None


@dataclass(frozen=True)
class ReportContent:
    """The findings of `explain`.

    * `model`: what it is called.
    * `inputs`: name, sizes (text where dynamic) and dtype of each tensor input; empty if the graph was not given.
    * `rows`: one an attention, in the order of execution.
    * `plan`: what the plan says as a whole, None without one.
    * `warnings`: reasons to doubt the plan's measurements here; `notes`: what to know or to do next.
    * `table`: whose latencies are shown, None for those that the plan recorded.
    * `estimate_full`, `estimate_plan`: the latency of the whole model when it is compiled, after the exact rewrites
      alone and after the plan; None without a table, without a plan, or where it is not known.
    """

    model: str
    inputs: tuple[tuple[str, tuple[int | str, ...], str], ...]
    rows: tuple[SiteRow, ...]
    totals: Totals
    plan: PlanSummary | None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    table: TableSource | None = None
    estimate_full: Estimate | None = None
    estimate_plan: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it: numbers, text, None, lists and dicts.

        Keys: `schema_version` (1), `model`, `inputs` (`name`, `shape`, `dtype`), `sites` (the fields of `SiteRow`, with
        `measured` as label → the fields of `MeasuredChoice`), `totals` (the fields of `Totals`), `plan` (the fields of
        `PlanSummary`, or None), `warnings` and `notes` (sentences), `table` (the fields of `TableSource`, or None),
        `estimate_full` and `estimate_plan` (`ms`, `low`, `high`, `measured_share`, `extrapolated`, or None). Keys may
        be added, never renamed or removed, while `schema_version` stays.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "inputs": [{"name": name, "shape": list(shape), "dtype": dtype} for name, shape, dtype in self.inputs],
            "sites": [
                asdict(row) | {"measured": {label: one._asdict() for label, one in row.measured.items()}}
                for row in self.rows
            ],
            "totals": asdict(self.totals),
            "plan": None if self.plan is None else self.plan.to_dict(),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "table": None if self.table is None else asdict(self.table),
            "estimate_full": _estimate(self.estimate_full),
            "estimate_plan": _estimate(self.estimate_plan),
        }


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    names = ("ms", "low", "high", "measured_share", "extrapolated")
    return {name: getattr(estimate, name) for name in names}


def totals_of(rows: Sequence[SiteRow]) -> Totals:
    """Count the attentions, and sum their latencies."""
    found = [row for row in rows if row.status == "found"]
    timed = [(row.full_ms, row.chosen_ms) for row in found]
    known = [(full, chosen) for full, chosen in timed if full is not None and chosen is not None]
    return Totals(
        found=len(found),
        refused=sum(row.status == "refused" for row in rows),
        rewritten=sum(row.status == "rewritten" for row in rows),
        changed=sum(row.decision != "full" for row in found),
        measured=len(known),
        latency_full_ms=sum(full for full, _ in known) if known else None,
        latency_chosen_ms=sum(chosen for _, chosen in known) if known else None,
    )
