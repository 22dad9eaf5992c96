"""Evaluate a model on the images of a split, beside the original model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jetvit.search.data.splits import Split, collate, evenly_spaced, filled_up
from jetvit.search.post_training.feature_extractor import ExtractedFeatures, FeatureExtractor, relative_error
from jetvit.search.post_training.train import Run
from jetvit.search.tasks.task import Task


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation, image by image.

    * counts: [images, n], of the task. errors: [images], the relative error of the features at the taps.
    * agreement: [images], of the output with that of the original model.
    """

    counts: Tensor
    errors: Tensor
    agreement: Tensor


class Evaluator:
    """Evaluates models on one split.

    Args:
        teacher: the original model, with the head.
        task: the metric, and what its head reads.
        split: the images. limit: so many of them, evenly spaced.
        batch: images at a time: what the model was captured with.
        run: the processes share the work.
        watch: called with the features of the model and of the original, and the number of their images that count.
    """

    def __init__(
        self,
        teacher: FeatureExtractor,
        task: Task,
        split: Split,
        batch: int,
        run: Run,
        limit: int | None = None,
        watch: Callable[[ExtractedFeatures, ExtractedFeatures, int], None] | None = None,
    ):
        self.watch = watch
        self.teacher, self.task, self.split, self.batch, self.run = teacher, task, split, batch, run
        self.places = evenly_spaced(len(split), limit or len(split))
        self.groups = [split.groups[place] for place in self.places]

    @torch.no_grad()
    def __call__(self, extractor: FeatureExtractor, what: str = "evaluating", *, compare: bool = True) -> EvalResult:
        """Evaluate a model; `what` describes the work to the progress.

        Without `compare` errors and agreement are NaN, and the original model runs only where a task has no labels.
        """
        rows: list[tuple[int, Any]] = []
        firsts = list(range(0, len(self.places), self.batch))
        own = firsts[self.run.processes.index :: self.run.processes.count]
        # All processes take as many turns, because the weights of a model in shards are put together by all of them.
        turns = -(-len(firsts) // self.run.processes.count)
        for turn in range(turns):
            first = own[turn] if turn < len(own) else firsts[0]
            places = self.places[first : first + self.batch]
            samples = [self.split[place] for place in places]
            images, targets = collate(samples)
            images = filled_up(images, self.batch)
            with self.run.autocast():
                ours = extractor(images)
                theirs = self._reference(extractor, ours, images, compare)
            if turn < len(own):
                if self.watch is not None and theirs is not None:
                    self.watch(ours, theirs, len(places))
                rows += zip(places, self._rows(ours, theirs, targets, len(places)), strict=True)
            self.run.progress(what, turn + 1, turns)
        ordered = [row for _, row in sorted(self.run.processes.gather(rows), key=lambda row: row[0])]
        counts, errors, agreement = zip(*ordered, strict=True)
        return EvalResult(torch.stack(counts), torch.stack(errors), torch.stack(agreement))

    def _reference(
        self, extractor: FeatureExtractor, ours: ExtractedFeatures, images: Tensor, compare: bool
    ) -> ExtractedFeatures | None:
        if not compare and self.task.labelled:
            return None
        return ours if extractor is self.teacher else self.teacher(images)

    def _rows(
        self, ours: ExtractedFeatures, theirs: ExtractedFeatures | None, targets: Tensor | None, count: int
    ) -> list[tuple[Tensor, ...]]:
        output = ours.output[:count].float()
        reference = output if theirs is None else theirs.output[:count].float()
        if not self.task.labelled:
            targets = reference
        assert targets is not None, "the task needs targets"
        errors = agreement = torch.full((count,), torch.nan)
        if theirs is not None:
            errors = relative_error(ours.tokens, theirs.tokens)[:count]
            agreement = self.task.agreement(output, reference)
        columns = (self.task.counts(output, targets.to(output.device)), errors, agreement)
        return list(zip(*(column.double().cpu() for column in columns), strict=True))
