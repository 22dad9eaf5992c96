"""Keeping a model's features as the task of a search: it needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from jetvit.patterns.errors import InputError
from jetvit.search.tasks.drift import agreement


@dataclass(frozen=True)
class Features:
    """Features as the original model has them: output and target [batch, channels, h, w].

    * taps: how many feature maps are kept; stacked, they are the output. 0 takes those that something behind the blocks
      reads: the last one of a backbone, and what a head reads of a model that has one.
    """

    taps: int = 0
    name: ClassVar[str] = "features"
    metric: ClassVar[str] = "explained"
    labelled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.taps < 0:
            raise InputError(f"{self.taps} feature maps are no number", do="give taps of 0 or more")

    def head(self, channels: Sequence[int]) -> nn.Module:
        """A module without parameters: the maps, stacked on the channel axis."""
        return _Stack()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The drift of each image, its squared error over its target's variation, as a mean over the images."""
        error, variation = self._sums(output.float(), target.float())
        return (error / variation.clamp_min(torch.finfo(torch.float32).tiny)).mean()

    def counts(self, output: Tensor, target: Tensor) -> Tensor:
        """[batch, 2] in float64: squared error, and the target's variation around its channel means."""
        return torch.stack(self._sums(output.double(), target.double()), 1)

    def metrics(self, counts: Tensor) -> dict[str, float]:
        """The explained share of the variation: 1 for the same features, 0 for no better than each image's mean.

        It is 1 − the drift of `jetvit.search.tasks.drift`, of the sums over the images of counts [images, 2].
        """
        error, variation = counts.sum(0)
        return {"explained": float(1 - error / variation)}

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        """[batch]: the correlation of the features."""
        return torch.tensor(agreement(output, reference), dtype=torch.float64)

    @staticmethod
    def _sums(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """[batch] each: squared error, and variation around the mean of each image and channel."""
        if output.shape != target.shape or output.dim() != 4:
            raise InputError(
                f"features {list(output.shape)} and {list(target.shape)} do not fit",
                why="both are expected as [batch, channels, height, width], of one size",
            )
        centred = target - target.mean((2, 3), keepdim=True)
        return (output - target).square().sum((1, 2, 3)), centred.square().sum((1, 2, 3))


class _Stack(nn.Module):
    """Maps [batch, channels[i], h, w] to [batch, sum of channels, h, w]."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(maps), 1)
