"""Measure the drift of a plan on images that it was not made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from jetvit.cost_model import Plan
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.pipeline import rewrite_program
from jetvit.search.calibration.runner import Output, Runner, as_batches
from jetvit.search.tasks.drift import Drift, agreement, check_finite, place_axes

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CheckReport:
    """The drift of a plan over all images and on each, and the mean correlation of the outputs ("agreement")."""

    drift: float
    drift_per_image: list[float]
    agreement: float
    images: int


def check_plan(
    model: nn.Module | ExportedProgram,
    plan: Plan,
    batches: Sequence[Any],
    *,
    output: Output = None,
    kwargs: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Compare the rewritten model with the original one.

    Args:
        model: a module in eval mode or an exported program.
        plan: the plan.
        batches: [B, 3, H, W] tensors of one shape, or (args, kwargs) pairs.
        output: which tensor of the result to compare; the first floating-point one by default.
        kwargs: keyword arguments for every batch.
        progress: called with a description, the batches done, and their number.
    Raises:
        PlanError: the plan does not fit the model.
        InputError: the model's output is not finite.
    """
    pairs = as_batches(batches, kwargs)
    program = export_model(model, *pairs[0])
    original = Runner(program, output)
    rewritten = Runner(rewrite_program(program, plan), output)
    references, outputs = [], []
    for index, batch in enumerate(pairs):
        references.append(check_finite(original.run(batch), f"the model's output on batch {index}"))
        outputs.append(rewritten.run(batch))
        if progress is not None:
            progress("comparing", index + 1, len(pairs))
    drift = Drift(references, place_axes(references[0], original.channel_axes()))
    correlations: list[float] = []
    for index, (ours, theirs) in enumerate(zip(outputs, references, strict=True)):
        drift.add(index, ours)
        correlations += agreement(ours, theirs)
    return CheckReport(drift.total, drift.per_image, sum(correlations) / len(correlations), len(correlations))
