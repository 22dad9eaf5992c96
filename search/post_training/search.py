"""Post-training attention search: a plan with trained weights, for a task, within a latency.

The stages, each of which resumes where it was when the run was killed: the head of the task on the original model;
local distillation of every choice at every site; scores of single choices, which leave a few a site; distillation of
random paths; the search for a path, by an integer program over the scores and by the paper's beam search, both rated by
the task's metric; and training of the model on that path. Source: arXiv 2605.26636, with a control beside the plan, and
with images to choose by that are not those of the report.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from jetvit.cost_model import Plan
from jetvit.search.calibration.run_folder import locked_folder
from jetvit.search.data.processes import processes_here
from jetvit.search.data.splits import Splits
from jetvit.search.post_training.record import recorded_plan
from jetvit.search.post_training.request import SearchRequest, request_of
from jetvit.search.post_training.setup import prepare
from jetvit.search.post_training.stages import (
    confirm_path,
    distil_choices,
    distil_paths,
    find_path,
    report_metrics,
    score_choices,
    select_survivors,
    train_control,
    train_plan,
    train_task_head,
)
from jetvit.search.tasks.task import Task


def search(
    model: nn.Module | ExportedProgram,
    data: Splits,
    task: Task,
    budget: float | str | None = None,
    request: SearchRequest | None = None,
    **options: Any,
) -> Plan:
    """Convert most of a model's attentions to linear and window attention, and train it to match its original outputs.

    Args:
        model: a module in eval mode, or an exported program that takes batches of the recipe's size, divided among the
            processes.
        data: images of one size: those that train, those that choose, and those of the report, which are read once.
        task: the head, the loss and the metric.
        budget: a bound on the latency of the whole model: 0 to 1 is a share of the original's, "5ms" is absolute.
        request: all options, the budget too, in the place of the keywords.
        options: the fields of `SearchRequest`, which describes them: max_full, choices, recipe, folder, taps, head,
            output, inputs, kwargs, costs, dtype, latency_batch, precision, seed, processes, sharded, provenance,
            progress.
    Returns:
        A plan with weights. Its record has the metrics of the report with intervals, the splits' hashes, and the
        models that it was compared with. The head, where one was trained, is in the folder: head.safetensors.
    Raises:
        InputError: data, task, options or folder that do not fit, or another search that runs in the folder.
        JetvitError: the model has no attention that can be searched; a loss is not finite.
        PlanError: no plan keeps the budget.
        TypeError: there is no such option.
    """
    request = request_of(budget, request, options)
    request.refuse_task(task)
    processes = request.processes or processes_here()
    folder = request.folder if processes.first else None
    with nullcontext() if folder is None else locked_folder(folder, "search"):
        setup = prepare(model, data, task, request, processes)
        train_task_head(setup)
        distil_choices(setup)
        alternatives = select_survivors(setup)
        distil_paths(setup, alternatives)
        scores = score_choices(setup, alternatives)
        found = find_path(setup, alternatives, scores)
        confirmation = confirm_path(setup, found.best.path)
        plan = train_plan(setup, found.best.path)
        control = train_control(setup)
        metrics = report_metrics(setup, plan, control)
        return recorded_plan(setup, plan.student.plan(), found, scores, confirmation, metrics)
