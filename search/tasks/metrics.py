"""Metrics of dense predictions: segmentation, relative depth, and agreement with the original model.

Every metric that is a mean over images keeps its value for each image, for intervals over images need them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted

Dialect = Literal["depth", "disparity"]
METRIC_NAMES = {"miou": "mIoU", "delta1": "δ1", "explained": "explained variation"}
"""The metric of a task → what it is called in the terminal and in pictures."""

# Depths beyond 1 km are taken for 1 km.
_LEAST_DISPARITY = 1e-3


class Confusion:
    """Segmentation of a data set: how often each labelled class was predicted as each class.

    Args:
        classes: how many there are; labels of another value (void) are ignored.
    """

    def __init__(self, classes: int):
        self.classes = classes
        self.by_image: list[Tensor] = []

    def add(self, predicted: Tensor, labels: Tensor) -> None:
        """Count one image or a batch: predicted and labels [..., height, width], of whole numbers.

        Raises InputError where the shapes differ, or a prediction is no class.
        """
        if predicted.shape != labels.shape:
            raise InputError(f"a prediction is {list(predicted.shape)} and its labels are {list(labels.shape)}")
        if predicted.numel() and not 0 <= int(predicted.min()) <= int(predicted.max()) < self.classes:
            raise InputError(f"a predicted class is none of {self.classes}")
        images = (each.reshape(-1, *each.shape[-2:]) for each in (predicted, labels))
        for ours, theirs in zip(*images, strict=True):
            ours, theirs = ours.long(), theirs.long()  # the number of classes may not fit into bytes
            known = (theirs >= 0) & (theirs < self.classes)
            pairs = theirs[known] * self.classes + ours[known]
            counts = torch.bincount(pairs.flatten(), minlength=self.classes**2)
            self.by_image.append(counts.reshape(self.classes, self.classes).cpu())

    @property
    def total(self) -> Tensor:
        """[labelled class, predicted class] over all images."""
        return torch.stack(self.by_image).sum(0) if self.by_image else torch.zeros(self.classes, self.classes).long()

    def miou(self) -> float:
        """Mean intersection over union, summed over all images, over classes that were labelled or predicted."""
        return mean_iou(self.total)

    def pixel_accuracy(self) -> float:
        """The share of labelled pixels that are right."""
        total = self.total
        return float(total.diagonal().sum() / total.sum()) if total.sum() else float("nan")


def mean_iou(counts: Tensor) -> float:
    """Mean intersection over union of counts [labelled class, predicted class]; NaN where nothing was counted."""
    hit = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return float((hit[union > 0] / union[union > 0]).mean())


class DepthScores(NamedTuple):
    """δ1, the share of pixels within a factor of 1.25 of the truth, and AbsRel, the mean relative error."""

    delta1: float
    abs_rel: float


@dataclass(frozen=True)
class DepthMetric:
    """The metrics of relative depth, after a scale and a shift are fitted for each image.

    * dialect: "depth" fits the prediction to 1 / depth, inverts it, and compares depths; "disparity" compares the
      fitted prediction with 1 / depth itself. They differ by up to 20 points, so that there is no default.
    * nearest, farthest: metres; what is not between them does not count.
    """

    dialect: Dialect
    nearest: float
    farthest: float

    def __post_init__(self) -> None:
        if self.dialect not in ("depth", "disparity"):
            raise ValueError(f"{self.dialect!r} is no dialect: depth or disparity")
        if not 0 < self.nearest < self.farthest:
            raise ValueError(f"depths from {self.nearest} to {self.farthest} m are no range")

    def __call__(self, predicted: Tensor, depth: Tensor, mask: Tensor | None = None) -> DepthScores:
        """The scores of one image.

        Args:
            predicted: [height, width], an affine function of disparity (near is large), as DepthAnythingV2 yields it.
            depth: [height, width] in metres.
            mask: [height, width], where the depth is known; by default everywhere.
        Raises:
            InputError: the shapes differ, or fewer than two pixels count.
        """
        if predicted.shape != depth.shape or (mask is not None and mask.shape != depth.shape):
            raise InputError(f"a prediction is {list(predicted.shape)} and its depth is {list(depth.shape)}")
        valid = (depth >= self.nearest) & (depth <= self.farthest)
        if mask is not None:
            valid &= mask.bool()
        p, d = predicted[valid].double(), depth[valid].double()
        if len(p) < 2:
            raise InputError(
                f"a depth from {self.nearest} to {self.farthest} m: {counted(len(p), 'pixel')}, and 2 are needed"
            )
        aligned = _affine(p, 1 / d)
        ours, truth = aligned, 1 / d
        if self.dialect == "depth":
            ours, truth = 1 / aligned.clamp_min(_LEAST_DISPARITY), d
        near = (ours > 0) & (torch.maximum(ours / truth, truth / ours) < 1.25)
        return DepthScores(float(near.double().mean()), float(((ours - truth).abs() / truth).mean()))


def _affine(p: Tensor, target: Tensor) -> Tensor:
    """s·p + t, with s and t of least squared error; a constant where p is one."""
    centred = p - p.mean()
    variance = centred.square().mean()
    slope = (centred * (target - target.mean())).mean() / variance if variance > 0 else torch.zeros_like(variance)
    return slope * centred + target.mean()


def closer_accuracy(predicted: Tensor, pairs: Sequence[Mapping[str, object]]) -> list[bool]:
    """Check that the closer point of each pair has the larger disparity, strictly, as DA-2K counts it.

    Args:
        predicted: [height, width] disparity at the annotations' own size.
        pairs: with "point1" and "point2", each [row, column], and "closer_point", the name of one of them.
    """
    answers = []
    for pair in pairs:
        names = ["point1", "point2"]
        if pair["closer_point"] not in names:
            raise InputError(f"closer_point is {pair['closer_point']!r}, neither point1 nor point2")
        values = {name: predicted[_place(pair[name], predicted)] for name in names}
        closer = values.pop(str(pair["closer_point"]))
        answers.append(bool(closer > next(iter(values.values()))))
    return answers


def _place(point: Any, predicted: Tensor) -> tuple[int, int]:
    row, column = (int(each) for each in point)
    if not (0 <= row < predicted.shape[0] and 0 <= column < predicted.shape[1]):
        raise InputError(f"the point {list(point)} is outside of {list(predicted.shape)}")
    return row, column


def label_agreement(ours: Tensor, theirs: Tensor) -> float:
    """The share of places where two score maps [batch, class, ...] have their largest score at the same class."""
    if ours.shape != theirs.shape:
        raise InputError(f"score maps are {list(ours.shape)} and {list(theirs.shape)}")
    return float((ours.argmax(1) == theirs.argmax(1)).double().mean())
