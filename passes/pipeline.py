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

from jetvit.cost_model import Plan
from jetvit.passes.graph.base import Pass
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.passes.graph.verify import Verification
from jetvit.passes.rewrites.apply_plan import ApplyPlan
from jetvit.passes.rewrites.clean_up import CleanUp
from jetvit.passes.rewrites.fold_constants import FoldConstants
from jetvit.passes.rewrites.fuse_attention import FuseAttention
from jetvit.passes.rewrites.merge_projections import MergeProjections
from jetvit.passes.rewrites.normalize import Normalize
from jetvit.passes.rewrites.result_strides import keep_result_strides
from jetvit.passes.rewrites.straighten_views import StraightenViews
from jetvit.patterns.find import find_sites
from jetvit.patterns.token_grid import has_hints

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassRecord:
    """One pass of a run: its name, how often it fired, its time in seconds, and what `PassResult` holds beside."""

    name: str
    fired: int
    seconds: float
    notes: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()


def passes(
    plan: Plan | None = None, partial: bool = False, operator: bool | None = None, skip_refused: bool = False
) -> list[Pass]:
    """The passes in their order.

    Args:
        plan: the approximate rewrites to make; None makes none.
        partial: the graph may hold only some of the plan's sites.
        operator: whether full attention becomes an operator, as `FuseAttention` takes it.
        skip_refused: as `ApplyPlan` takes it.
    """
    approximate: list[Pass] = [ApplyPlan(plan, partial, skip_refused)] if plan is not None else []
    exact: list[Pass] = [FuseAttention(operator), StraightenViews(), MergeProjections(), FoldConstants(), CleanUp()]
    return [Normalize(), *approximate, *exact]


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
    sites = find_sites(graph)
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
