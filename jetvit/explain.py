"""`explain`: every attention of a model, what a plan makes of it and what that was measured to cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from jetvit.cost_model import Plan
from jetvit.cost_model.device_costs import DeviceCosts
from jetvit.cost_model.estimate import Estimate
from jetvit.passes.capture import capture
from jetvit.passes.emit import OptimizedModule
from jetvit.passes.graph import RewritableGraph
from jetvit.passes.open_sizes import export_sizes
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import Sites
from jetvit.report_costs import TableSource, estimates, with_latencies
from jetvit.report_plan import PlanSummary, entries_by_name, notes_on, summarise, warnings_on
from jetvit.report_rows import SiteRow, read_rows
from jetvit.report_sizes import SizeNames
from jetvit.report_text import render

SCHEMA_VERSION = 1


def explain(
    model: nn.Module | ExportedProgram,
    *args: Any,
    plan: Plan | str | os.PathLike[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    dynamic: bool = False,
    costs: DeviceCosts | None = None,
) -> Report:
    """Say what jetvit sees in a model, and what a plan does to it.

    The model is not changed, and is run for `dynamic` alone.

    Args:
        model: a module in eval mode, an exported program, or what `jetvit.optimize` made of either.
        *args: example inputs of the module; a program and an optimized module need none.
        plan: a plan, or the folder or plan.json of one.
        kwargs: example keyword inputs.
        dynamic_shapes: as `torch.export.export` takes them; token counts are then expressions over the input's sizes.
        dynamic: leave batch, height and width of the images open, whatever the size of the example; the model is then
            called with one tensor of images, [batch, channel, height, width]. Not together with `dynamic_shapes`.
        costs: a device's latency table (`DeviceCosts.load`), of which the latency of every choice at every site and
            that of the whole model are taken. It takes the place of the latencies that the plan recorded.
    Returns:
        The report: `print` it, or take `to_dict()` or `to_html(path)`.
    Raises:
        CaptureError: the model cannot be captured.
        InputError: `dynamic` does not fit the other arguments.
        PlanError: the plan cannot be read, or is for another model.
    """
    if plan is not None and not isinstance(plan, Plan):
        plan = Plan.load(plan)
    name = type(model).__name__
    if isinstance(model, OptimizedModule):
        model = model.program  # a second capture would lose the names of the sites
    program = export_sizes(model, args, kwargs, dynamic_shapes, dynamic, check=False)
    graph = capture(program)
    sites = find_sites(graph)
    report = Report.from_sites(sites, plan, name, graph=graph, costs=costs)
    if costs is None:
        return report
    # What was rewritten already cannot be taken back: there is one model, and no second with the plan.
    full, planned, notes = estimates(program, None if sites.rewritten else plan, costs)
    return replace(report, estimate_full=full, estimate_plan=planned, notes=(*report.notes, *notes))


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
class Report:
    """What `explain` found.

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

    @classmethod
    def from_sites(
        cls,
        sites: Sites,
        plan: Plan | None = None,
        model_name: str = "model",
        *,
        graph: RewritableGraph | None = None,
        costs: DeviceCosts | None = None,
    ) -> Report:
        """The report on sites that were found before.

        Args:
            sites: what `find_sites` answered.
            plan: the plan to explain.
            model_name: the heading.
            graph: the graph of the sites. Without it, symbols keep their names (s77), and image size and weights are
                not compared with the plan's.
            costs: the latency table of a device. It says nothing of the whole model here, for that is not given.
        Raises:
            PlanError: the plan is for another model.
        """
        names = SizeNames(graph)
        entries = entries_by_name(plan, sites)
        rows = read_rows(sites, entries, names, graph)
        missing: list[str] = []
        if costs is not None:
            rows, missing = with_latencies(rows, sites, entries, costs)
        return cls(
            model=model_name,
            inputs=tuple(
                (name, tuple(map(names.text, value.shape)), str(value.dtype).removeprefix("torch."))
                for name, value in names.inputs
            ),
            rows=rows,
            totals=_totals(rows),
            plan=None if plan is None else summarise(plan),
            warnings=() if plan is None else tuple(warnings_on(plan, sites, names, graph)),
            notes=(*notes_on(plan, rows), *missing),
            table=None if costs is None else TableSource.of(costs),
        )

    def __str__(self) -> str:
        """A table in plain text for 120 columns: one line a site, the reason below each refused one, then totals."""
        return render(self)

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

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one self-contained HTML file with pictures. The same report gives the same bytes.

        Raises:
            InputError: the file cannot be written; an old one stays as it was.
        """
        from jetvit.files import atomic_write
        from jetvit.report_html import page  # imports matplotlib, which takes a while

        text = page(self)
        with atomic_write(path) as stream:
            stream.write(text)


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    names = ("ms", "low", "high", "measured_share", "extrapolated")
    return {name: getattr(estimate, name) for name in names}


def _totals(rows: Sequence[SiteRow]) -> Totals:
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
