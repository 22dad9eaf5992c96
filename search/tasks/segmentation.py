"""Semantic segmentation as the task of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted
from jetvit.search.tasks.heads import LinearHead
from jetvit.search.tasks.metrics import Confusion, label_agreement, mean_iou

_IGNORED = -100


@dataclass(frozen=True)
class Segmentation:
    """A class for every pixel: output [batch, classes, h, w] of logits, target [batch, height, width] of class numbers.

    Logits are upsampled to the size of the target, bilinearly. A target that is no class, below 0 or from `classes`
    on, is void: it neither trains nor counts.

    * classes: how many there are, void not among them.
    * taps: 1, for a linear head on the last feature map, or None where the model itself yields the logits.
    """

    classes: int
    taps: Literal[1] | None = 1
    name: ClassVar[str] = "segmentation"
    metric: ClassVar[str] = "miou"
    labelled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise InputError(
                f"{counted(self.classes, 'class', 'classes')}: nothing to tell apart",
                do="give 2 or more, void not counted",
            )
        if self.taps not in (1, None):
            raise InputError(
                f"a linear head reads 1 map, not {self.taps}",
                do="give taps=1, or None where the model itself yields the logits",
            )

    def head(self, channels: Sequence[int]) -> nn.Module:
        """A linear head on the last map."""
        return LinearHead(channels[-1], self.classes)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross entropy in nats, the mean over the labelled pixels of the batch; 0 where all are void.

        Raises:
            InputError: the output is not of so many classes.
        """
        labels = target.long()
        void = (labels < 0) | (labels >= self.classes)
        labels = labels.masked_fill(void, _IGNORED)
        total = F.cross_entropy(self._logits(output, target), labels, ignore_index=_IGNORED, reduction="sum")
        return total / (~void).sum().clamp_min(1)

    def counts(self, output: Tensor, target: Tensor) -> Tensor:
        """[batch, classes²] in float64, on the CPU: how often each labelled class was predicted as each class.

        Raises:
            InputError: the output is not of so many classes.
        """
        confusion = Confusion(self.classes)
        confusion.add(self._logits(output, target).argmax(1), target)
        return torch.stack(confusion.by_image).flatten(1).double()

    def metrics(self, counts: Tensor) -> dict[str, float]:
        """Mean intersection over union and pixel accuracy, 0 to 1, of counts [images, classes²]; NaN without labels.

        Both are of the sums over all images, and the former over the classes that were labelled or predicted.
        """
        total = counts.sum(0).reshape(self.classes, self.classes)
        return {"miou": mean_iou(total), "pixel_accuracy": float(total.diagonal().sum() / total.sum())}

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        """[batch]: the share of places, at the size of the logits, with the same class in both."""
        pairs = zip(output.split(1), reference.split(1), strict=True)
        return torch.tensor([label_agreement(ours, theirs) for ours, theirs in pairs], dtype=torch.float64)

    def _logits(self, output: Tensor, target: Tensor) -> Tensor:
        """The logits in float32, at the size of the target."""
        if output.dim() != 4 or output.shape[1] != self.classes:
            raise InputError(
                f"an output {list(output.shape)} is no score for each of {counted(self.classes, 'class', 'classes')}",
                why=f"[batch, {self.classes}, height, width] was expected",
                do="give the number of classes that the model or the head has",
            )
        return F.interpolate(output.float(), target.shape[-2:], mode="bilinear", align_corners=False)
