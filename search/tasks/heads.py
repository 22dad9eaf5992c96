"""Heads that read a model's feature maps: a linear probe, and a small DPT head for depth.

Both normalise a map over its channels without parameters of their own: the first linear layer absorbs them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from jetvit.patterns.errors import InputError


class LinearHead(nn.Module):
    """One linear layer on the last map: [batch, channels, h, w] to [batch, outputs, h, w]."""

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.linear = nn.Conv2d(channels, outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Read the last of the maps; the others are not looked at."""
        out: Tensor = self.linear(_normalised(maps[-1]))
        return out


class DPTHead(nn.Module):
    """A small head after DPT (Ranftl et al., arXiv 2103.13413): maps of one resolution to one number a place.

    The maps, from early to late blocks, become a pyramid: the first four times as fine as the model's grid, every
    following one half as fine as the one before, none coarser than half the grid. It is summed up from coarse to fine.

    The number has no bounds: a disparity up to scale and shift may be below zero as well.

    Args:
        channels: of each map; one or more maps.
        width: channels inside the head.
    Raises:
        InputError: there is no map to read.
    """

    def __init__(self, channels: Sequence[int], width: int = 64):
        super().__init__()
        if not channels:
            raise InputError("a DPT head needs a map to read", do="give the channels of one map or more")
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, width, 1), _resampling(width, level)) for level, count in enumerate(channels)
        )
        self.fusions = nn.ModuleList(_Residual(width) for _ in channels)
        self.output = nn.Sequential(nn.Conv2d(width, width // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(width // 2, 1, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [batch, channels[i], h, w] to [batch, 4h, 4w]."""
        pyramid = [level(_normalised(each)) for level, each in zip(self.levels, maps, strict=True)]
        fused = self.fusions[-1](pyramid[-1])
        for level, fusion in zip(reversed(pyramid[:-1]), reversed(self.fusions[:-1]), strict=True):
            # To the very size: half of an odd grid is rounded up.
            fused = fusion(level + F.interpolate(fused, level.shape[2:], mode="bilinear"))
        out: Tensor = self.output(fused).squeeze(1)
        return out


class _Residual(nn.Module):
    """Two convolutions beside the identity, [batch, width, h, w]."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(F.relu(self.first(F.relu(x))))
        return out


def _resampling(width: int, level: int) -> nn.Module:
    """To 4, 2, 1 times the grid at levels 0, 1, 2, and to a half of it after them."""
    if level > 2:
        return nn.Conv2d(width, width, 3, stride=2, padding=1)
    factor = 4 >> level
    return nn.ConvTranspose2d(width, width, factor, stride=factor) if factor > 1 else nn.Identity()


def _normalised(features: Tensor) -> Tensor:
    """LayerNorm over the channels of [batch, channels, h, w]."""
    return F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)
