"""The order of the passes, and what is checked, timed and written down on the way.

normalise → the plan's rewrites → exact rewrites (fuse, straighten, merge, fold) → clean up. Exact rewrites come after
the plan, because they take away the parameter names that a plan asks for. A second run of the pipeline fires nowhere.
At the end the results get the strides that they had.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torch.export import ExportedProgram

from jetvit.cost_model import Plan
from jetvit.passes.graph.base import Pass
from jetvit.passes.graph.rewritable import ExportedGraph, RewritableGraph
from jetvit.passes.graph.verify import Verification
from jetvit.passes.rewrites.apply_plan import ApplyPlan
from jetvit.passes.rewrites.clean_up import CleanUp
from jetvit.passes.rewrites.fold_constants import FoldConstants
from jetvit.passes.rewrites.fuse_attention import FuseAttention
from jetvit.passes.rewrites.merge_projections import MergeProjections
from jetvit.passes.rewrites.normalize import Normalize
from jetvit.passes.rewrites.result_strides import keep_result_strides
from jetvit.passes.rewrites.straighten_views import StraightenViews
from jetvit.patterns.errors import InputError
from jetvit.patterns.site import Sites
from jetvit.patterns.token_grid import has_hints
from jetvit.patterns.wording import did_you_mean

log = logging.getLogger(__name__)
Graph = TypeVar("Graph", bound=RewritableGraph)

PASSES = tuple(
    each.name
    for each in (Normalize, ApplyPlan, FuseAttention, StraightenViews, MergeProjections, FoldConstants, CleanUp)
)
"""The names of all passes, in their order."""


@dataclass(frozen=True)
class RewriteOptions:
    """The options of a rewrite.

    * `exact`: make the exact rewrites too. Without them a plan's weights keep their names, so that they can be trained.
    * `disable`: names of passes to leave out, of those in `PASSES`.
    * `partial`: the graph may hold only some of the plan's sites (Dynamo, after a graph break).
    * `skip_refused`: attentions that the plan changes and that cannot be rewritten stay as they are, with a warning.
    * `operator`: whether full attention becomes an operator, as `FuseAttention` takes it.
    * `dump`: a folder that gets the graph's code before the first pass and after each that fired.
    * `check`: verify the graph after each pass that fired.

    Raises:
        InputError: `disable` is no list, a name in it is that of no pass, or of the one that applies the plan.
    """

    exact: bool = True
    disable: Sequence[str] = ()
    partial: bool = False
    skip_refused: bool = False
    operator: bool | None = None
    dump: Path | None = None
    check: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.disable, str):
            raise InputError(f"disable is the text {self.disable!r}", do=f"give a list: [{self.disable!r}]")
        for name in self.disable:
            if name == ApplyPlan.name:
                raise InputError(f"the pass {name} cannot be left out", do="give no plan")
            if name not in PASSES:
                raise InputError(
                    f"there is no pass {name!r}", do=did_you_mean(name, PASSES, f"the passes are {', '.join(PASSES)}")
                )


@dataclass(frozen=True)
class PassRecord:
    """One pass of a run: its name, how often it fired, its time in seconds, and what `PassResult` holds beside."""

    name: str
    fired: int
    seconds: float
    notes: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rewritten(Generic[Graph]):
    """A graph that was rewritten in place, the sites that it had before, and a record a pass that was run."""

    graph: Graph
    sites: Sites
    records: list[PassRecord]

    @property
    def changed(self) -> bool:
        """Report whether any pass fired."""
        return any(record.fired for record in self.records)


def rewrite(graph: Graph, plan: Plan | None = None, options: RewriteOptions = RewriteOptions()) -> Rewritten[Graph]:
    """Rewrite a graph in place; without a plan only exact rewrites are made.

    A graph without any attention site is left as it is.

    Args:
        graph: the graph to change.
        plan: which sites become window or linear attention.
        options: which passes are run, and what is checked and written down.
    Raises:
        PlanError: the plan does not fit the graph.
        RewriteError: a pass broke the graph.
    """
    sites = graph.sites()
    return Rewritten(graph, sites, run_pipeline(graph, passes(plan, options), options.dump, options.check))


def rewrite_program(
    program: ExportedProgram, plan: Plan | None = None, options: RewriteOptions = RewriteOptions()
) -> ExportedProgram:
    """Return a program rewritten as `rewrite` does; the one given is not changed."""
    return rewrite(ExportedGraph(program), plan, options).graph.program()


def passes(plan: Plan | None = None, options: RewriteOptions = RewriteOptions()) -> list[Pass]:
    """The passes that `rewrite` runs, in their order."""
    every: list[Pass | None] = [
        Normalize(),
        ApplyPlan(plan, options.partial, options.skip_refused) if plan is not None else None,
        FuseAttention(options.operator) if options.exact else None,
        StraightenViews() if options.exact else None,
        MergeProjections() if options.exact else None,
        FoldConstants() if options.exact else None,
        CleanUp(),
    ]
    return [each for each in every if each is not None and each.name not in options.disable]


def run_pipeline(
    graph: RewritableGraph, sequence: Sequence[Pass], dump: Path | None = None, check: bool = True
) -> list[PassRecord]:
    """Run passes over a graph in place.

    A graph without any attention site is left as it is.

    Args:
        graph: the graph to change.
        sequence: the passes.
        dump: a folder that gets the graph's code before the first pass and after each that fired.
        check: verify the graph after each pass that fired.
    Raises:
        RewriteError: a pass broke the graph.
        PlanError: the plan does not fit it.
    """
    records: list[PassRecord] = []
    sites = graph.sites()
    has_plan = any(isinstance(each, ApplyPlan) for each in sequence)
    if not sites and not sites.rewritten and not has_plan and not has_hints(graph):
        log.info("no full attention was found; the graph is left as it is")
        return records
    verification = Verification(graph)
    _dump(graph, dump, 0, "captured")
    for index, each in enumerate(sequence, start=1):
        start = time.perf_counter()
        result = each(graph)
        if result.fired and check:
            verification.check(each.name)
        if result.fired:
            _dump(graph, dump, index, each.name)
        record = PassRecord(each.name, result.fired, time.perf_counter() - start, result.notes, result.planned)
        log.debug("%s fired %d× in %.3f s", record.name, record.fired, record.seconds)
        records.append(record)
    if any(record.fired for record in records) and keep_result_strides(graph, verification.expected) and check:
        verification.check("keep-result-strides")
    return records


def _dump(graph: RewritableGraph, folder: Path | None, index: int, name: str) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    text = graph.module.print_readable(print_output=False, include_stride=True)
    (folder / f"{index}-{name}.txt").write_text(text, encoding="utf-8")
