"""Relative depth as the task of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetvit.patterns.errors import InputError
from jetvit.search.tasks.drift import agreement
from jetvit.search.tasks.heads import DPTHead
from jetvit.search.tasks.metrics import DepthMetric, Dialect

# MiDaS, arXiv 1907.01341, section 5: the gradients of the residual, at four scales, count half.
_SCALES, _GRADIENT_WEIGHT = 4, 0.5
# An output varies where its mean absolute deviation is more than this share of its largest value: rounding of float32.
_FLAT = 1e-6


@dataclass(frozen=True)
class Depth:
    """Depth up to scale and shift of its inverse: output [batch, h, w], target [batch, height, width] in metres.

    The output is an affine function of disparity, near is large, as DepthAnythingV2 yields it. A target of 0 or NaN is
    unknown; so is what is out of range. The output is upsampled to the size of the target, bilinearly and with
    `align_corners=False`: the images were resized that way, so a place of the output covers what it covers in the
    target.

    * dialect: "depth" or "disparity", see `jetvit.search.tasks.metrics.DepthMetric`; they differ by up to 20 points.
    * nearest, farthest: metres.
    * taps: how many feature maps a DPT head reads, or None where the model itself yields the output.
    * crop: (top, bottom, left, right) in pixels of the target, what alone counts, as rows[top:bottom]; None for all.
      NYUv2 at 480×640 has (45, 471, 41, 601).
    """

    dialect: Dialect
    nearest: float
    farthest: float
    taps: int | None = 4
    crop: tuple[int, int, int, int] | None = None
    name: ClassVar[str] = "depth"
    metric: ClassVar[str] = "delta1"
    labelled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        DepthMetric(self.dialect, self.nearest, self.farthest)  # refuses what is no dialect or no range
        if self.taps is not None and self.taps < 1:
            raise InputError(f"a head cannot read {self.taps} maps", do="give taps of 1 or more, or None")
        if self.crop is not None:
            top, bottom, left, right = self.crop
            if not (0 <= top < bottom and 0 <= left < right):
                raise InputError(f"the crop {self.crop} holds no pixel", do="give (top, bottom, left, right)")

    def head(self, channels: Sequence[int]) -> nn.Module:
        """A DPT head on all of the maps."""
        return DPTHead(channels)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean absolute error of disparities that were shifted and scaled to mean 0 and mean deviation 1.

        Any scale above 0 and any shift of the output give the same loss, and it has no unit. As in DepthAnything
        (arXiv 2401.10891, equations 1 to 3), with the mean for the median; a fit by least squares would take near for
        far, for its scale may be below zero. The gradients of the error are added as in MiDaS (arXiv 1907.01341).
        The mean is over the images with two different known depths; 0 where there are none.
        """
        output, depth = self._pair(output, target)
        known = self._known(depth)
        nearest, farthest = torch.where(known, depth, torch.inf), torch.where(known, depth, -torch.inf)
        known &= nearest.amin((1, 2), keepdim=True) < farthest.amax((1, 2), keepdim=True)
        disparity = 1 / torch.where(known, depth, 1)
        error = _standardised(output, known) - _standardised(disparity, known)
        losses = _mean(error.abs(), known) + _GRADIENT_WEIGHT * _gradients(error, known)
        return losses.sum() / known.any(2).any(1).sum().clamp_min(1)

    def counts(self, output: Tensor, target: Tensor) -> Tensor:
        """[batch, 3] in float64, on the CPU: δ1, AbsRel and 1; zeros where fewer than two depths are known."""
        rows = []
        metric = DepthMetric(self.dialect, self.nearest, self.farthest)
        for ours, depth in zip(*self._pair(output, target), strict=True):
            enough = int(self._known(depth).sum()) >= 2
            rows.append((*metric(ours, depth), 1.0) if enough else (0.0, 0.0, 0.0))
        return torch.tensor(rows, dtype=torch.float64)

    def metrics(self, counts: Tensor) -> dict[str, float]:
        """The means over images of δ1, 0 to 1, and AbsRel, of counts [images, 3]; NaN where no image counts."""
        delta1, abs_rel, images = counts.sum(0)
        return {"delta1": float(delta1 / images), "abs_rel": float(abs_rel / images)}

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        """[batch]: the correlation of the outputs."""
        return torch.tensor(agreement(output, reference), dtype=torch.float64)

    def _known(self, depth: Tensor) -> Tensor:
        """Mask the pixels whose depth is in range, which no NaN is."""
        return (depth >= self.nearest) & (depth <= self.farthest)

    def _pair(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Output and target in float32, at one size, without what the crop leaves out."""
        if output.dim() != 3 or target.dim() != 3:
            raise InputError(
                f"an output {list(output.shape)} and depths {list(target.shape)} do not fit",
                why="both are expected as [batch, height, width]",
            )
        output = F.interpolate(output.float()[:, None], target.shape[1:], mode="bilinear", align_corners=False)[:, 0]
        top, bottom, left, right = self.crop or (0, target.shape[1], 0, target.shape[2])
        if bottom > target.shape[1] or right > target.shape[2]:
            raise InputError(
                f"the crop {self.crop} is not inside of depths {list(target.shape[1:])}",
                do="give (top, bottom, left, right) in pixels of the depths",
            )
        return output[:, top:bottom, left:right], target[:, top:bottom, left:right].float()


def _mean(values: Tensor, known: Tensor) -> Tensor:
    """[batch]: the mean of values [batch, height, width] where they are known; 0 where none is."""
    total = torch.where(known, values, 0).sum((1, 2))
    return total / known.sum((1, 2)).clamp_min(1)


def _standardised(values: Tensor, known: Tensor) -> Tensor:
    """Values [batch, height, width] of mean 0 and mean absolute deviation 1, or all about 0 if constant."""
    values = torch.where(known, values, 0)
    centred = values - _mean(values, known)[:, None, None]
    spread = _mean(centred.abs(), known)
    flat = spread <= _FLAT * values.detach().abs().amax((1, 2))
    return centred / torch.where(flat, 1, spread)[:, None, None]


def _gradients(error: Tensor, known: Tensor) -> Tensor:
    """[batch]: how much the error differs from neighbour to neighbour, summed over both directions and all scales."""
    total = error.new_zeros(len(error))
    for scale in range(_SCALES):
        step = 2**scale
        some, mask = error[:, ::step, ::step], known[:, ::step, ::step]
        for axis in (1, 2):
            size = some.shape[axis] - 1
            both = mask.narrow(axis, 0, size) & mask.narrow(axis, 1, size)
            total = total + _mean(some.diff(dim=axis).abs(), both)
    return total
