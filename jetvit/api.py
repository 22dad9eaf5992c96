"""The offline half of the public face: find the attention of a model, and rewrite a model or an exported program."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn
from torch.export import ExportedProgram

from jetvit.cost_model import Plan
from jetvit.passes.frontends.calling import signature_of
from jetvit.passes.frontends.capture import capture
from jetvit.passes.frontends.emit import OptimizedModule
from jetvit.passes.frontends.open_sizes import export_sizes
from jetvit.passes.pipeline import RewriteOptions, rewrite
from jetvit.patterns.errors import PlanError
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import Sites

log = logging.getLogger(__name__)
ModelOrProgram = TypeVar("ModelOrProgram", nn.Module, ExportedProgram)


def find_attention(
    model: nn.Module | ExportedProgram,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    dynamic: bool = False,
) -> Sites:
    """Find the full self-attention sites of a model.

    Args:
        model: a module in eval mode, or a pre-dispatch ExportedProgram (then no inputs are needed).
        args, kwargs: example inputs; shapes and dtypes matter, values do not.
        dynamic_shapes: as `torch.export.export` takes them.
        dynamic: leave batch, height and width of the images open, whatever the size of the example; the model is then
            called with one tensor of images, [batch, channel, height, width]. Not together with `dynamic_shapes`.
    Returns:
        A list of `AttentionSite` in the order of execution; its `rejected` lists the near misses with their reasons.
    Raises:
        CaptureError: torch.export cannot capture the model.
        InputError: `dynamic` does not fit the other arguments.
    """
    return find_sites(capture(export_sizes(model, args, kwargs, dynamic_shapes, dynamic, check=False)))


def optimize(
    model: ModelOrProgram,
    *args: Any,
    plan: Plan | str | os.PathLike[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    dynamic: bool = False,
    disable: Sequence[str] = (),
    dump: str | os.PathLike[str] | None = None,
) -> ModelOrProgram:
    """Rewrite a model for inference; without a plan only exact rewrites are made.

    The model given is never changed; the result shares the storage of its weights, but for those that a plan replaces
    or that were merged or folded.

    Args:
        model: a module in eval mode, or a pre-dispatch ExportedProgram.
        args, kwargs: example inputs; without `dynamic` the result takes inputs of these shapes.
        plan: which sites become window or linear attention: a `Plan` or the folder of one.
        dynamic_shapes: as `torch.export.export` takes them; a size that is left open must be at least 2 in the inputs.
        dynamic: leave batch, height and width of the images open, whatever the size of the example; the model is then
            called with one tensor of images, [batch, channel, height, width]. Not together with `dynamic_shapes`.
        disable: names of passes to leave out, such as "merge-projections"; `jetvit.passes.pipeline.PASSES` lists all.
        dump: a folder that gets the graph before the first pass and after each that fired.
    Returns:
        A module for a module, a validated ExportedProgram for a program. A program without attention comes back itself.
    Raises:
        CaptureError: torch.export cannot capture the model.
        InputError: `dynamic` does not fit the other arguments, or there is no such pass.
        PlanError: the plan does not fit the model.
    """
    plan = load_plan(plan)
    options = RewriteOptions(disable=disable, dump=Path(dump) if dump is not None else None)
    rewritten = rewrite(capture(export_sizes(model, args, kwargs, dynamic_shapes, dynamic)), plan, options)
    if isinstance(model, ExportedProgram):
        return cast(ModelOrProgram, rewritten.graph.program() if rewritten.changed else model)
    signature = model.signature if isinstance(model, OptimizedModule) else signature_of(model)
    return cast(ModelOrProgram, OptimizedModule(rewritten.graph.program(), signature))


def load_plan(plan: Plan | str | os.PathLike[str] | None) -> Plan | None:
    """A plan as it is, or from its folder.

    Raises:
        PlanError: the folder holds no plan, or what was given is none.
    """
    if plan is None or isinstance(plan, Plan):
        return plan
    if not isinstance(plan, str | os.PathLike):
        raise PlanError(f"a {type(plan).__name__} is no plan", do="give a jetvit.Plan, or the folder of one")
    return Plan.load(plan)
