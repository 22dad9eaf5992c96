"""The options of a post-training search, checked when they are given."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from jetvit.cost_model import Choice, DeviceCosts
from jetvit.patterns.errors import InputError
from jetvit.search.calibration.best_plan import Budget
from jetvit.search.calibration.runner import Output
from jetvit.search.data.processes import Processes
from jetvit.search.data.stream import Inputs
from jetvit.search.post_training.recipe import CHOICES, Recipe
from jetvit.search.post_training.train import Progress
from jetvit.search.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """The options of `jetvit.search`.

    Args:
        budget: a bound on the latency of the whole model: 0 to 1 is a share of the original's, "5ms" is absolute.
        max_full: at how many sites attention may stay full. With neither bound the search selects the fastest path
            that is as good as the original on the choosing images.
        choices: the alternatives to full attention at each site.
        recipe: stages and sizes; by default `Recipe()`.
        folder: keeps progress, a trace and metrics.csv; the same call resumes a search that was killed.
        taps: names of the blocks whose outputs the head reads; by default as the task says, or where the model has a
            head of its own, the blocks that this head reads.
        head: a trained head, in the place of a new one.
        output: the tensor of the model's result that is the task's output, where the model has a head of its own.
        inputs: from images to the (args, kwargs) of a call; by default images as the first argument.
        kwargs: keyword arguments for every call, if `inputs` is not given.
        costs: the latencies of the device that the plan is for, if that is not the one that the model is on now.
        dtype: of the model on that device, "float32", "float16" or "bfloat16"; by default its present one.
        latency_batch: images in the batch whose latency counts; an exported program has its own.
        precision: "bf16" trains under autocast, "fp32" does not.
        seed: of all random numbers. The same seed gives the same plan, also after a kill.
        processes: the processes that work together; by default those that a launcher has started. They share a file
            system.
        sharded: whether each process holds a part of the trained weights (FSDP), for models that do not fit otherwise.
        provenance: more entries for the plan's record.
        progress: called with a description, the steps done, and their number.
    Raises:
        InputError: the precision is unknown; the budget is no share and no time; a number is too small.
    """

    budget: float | str | None = None
    max_full: int | None = None
    choices: Sequence[Choice] = CHOICES
    recipe: Recipe | None = None
    folder: str | os.PathLike[str] | None = None
    taps: Sequence[str] | None = None
    head: nn.Module | None = None
    output: Output = None
    inputs: Inputs | None = None
    kwargs: Mapping[str, Any] | None = None
    costs: DeviceCosts | None = None
    dtype: str | None = None
    latency_batch: int = 1
    precision: str = "fp32"
    seed: int = 0
    processes: Processes | None = None
    sharded: bool = False
    provenance: Mapping[str, Any] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))  # an iterator is read once
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"the precision is {self.precision!r}", do='give "fp32" or "bf16"')
        if self.budget is not None:
            Budget.parse(self.budget)
        if self.max_full is not None and self.max_full < 0:
            raise InputError(f"max_full is {self.max_full}", do="give a number of 0 or more")
        if self.latency_batch < 1:
            raise InputError(f"latency_batch is {self.latency_batch}", do="give a number of 1 or more")

    def refuse_task(self, task: Task) -> None:
        """Raise InputError for a task that these options do not fit."""
        if not task.labelled and self.budget is None and self.max_full is None:
            raise InputError(
                "a search without labels needs a bound",
                why="nothing yields the original's features as well as the original does",
                do="give a budget, or max_full",
            )
        if self.head is not None and task.taps is None:
            raise InputError("a head was given, and the task takes the model's own output", do="leave one of them out")

    def limit_ms(self, full_ms: float) -> float | None:
        """Return the bound on the latency, where the original takes `full_ms`; None without a budget."""
        return None if self.budget is None else Budget.parse(self.budget).limit_ms(full_ms)


def request_of(budget: float | str | None, request: SearchRequest | None, options: Mapping[str, Any]) -> SearchRequest:
    """Return the options of a call, which are given as a request or one by one.

    Raises:
        InputError: they are given in both ways, or do not fit.
        TypeError: there is no such option.
    """
    known = [field.name for field in fields(SearchRequest)]
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1, cutoff=0.0)[0]
            raise TypeError(f"search() has no option {name!r}; the nearest is {nearest!r}")
    if request is None:
        return SearchRequest(budget=budget, **options)
    given = [*(["budget"] if budget is not None else []), *options]
    if given:
        raise InputError(
            "options were given twice",
            why=f"there is a request, and {', '.join(given)} beside it",
            do="put all options into the SearchRequest, or give them one by one",
        )
    return request
