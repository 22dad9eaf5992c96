"""`explain`: every attention of a model, what a plan makes of it and what that was measured to cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from jetvit.cost_model import Plan
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.passes.frontends.capture import capture
from jetvit.passes.frontends.emit import OptimizedModule
from jetvit.passes.frontends.open_sizes import export_sizes
from jetvit.patterns.find import find_sites
from jetvit.report.costs import estimates
from jetvit.report.report import Report


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
