"""`Report`: the result of `explain`, as text, a dict or a page."""

from __future__ import annotations

import os

from jetvit.cost_model import Plan
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.patterns.site import Sites
from jetvit.report.content import ReportContent, totals_of
from jetvit.report.costs import TableSource, with_latencies
from jetvit.report.plan import entries_by_name, notes_on, summarise, warnings_on
from jetvit.report.rows import read_rows
from jetvit.report.sizes import SizeNames
from jetvit.report.text import render


class Report(ReportContent):
    """The result of `explain`: `ReportContent`, with ways to show it."""

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
            totals=totals_of(rows),
            plan=None if plan is None else summarise(plan),
            warnings=() if plan is None else tuple(warnings_on(plan, sites, names, graph)),
            notes=(*notes_on(plan, rows), *missing),
            table=None if costs is None else TableSource.of(costs),
        )

    def __str__(self) -> str:
        """A table in plain text for 120 columns: one line a site, the reason below each refused one, then totals."""
        return render(self)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one self-contained HTML file with pictures. The same report gives the same bytes.

        Raises:
            InputError: the file cannot be written; an old one stays as it was.
        """
        from jetvit.files import atomic_write
        from jetvit.report.html import page  # imports matplotlib, which takes a while

        text = page(self)
        with atomic_write(path) as stream:
            stream.write(text)
