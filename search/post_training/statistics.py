"""Bootstrap intervals of a metric, and a test of whether one model is as good as another.

The images that were measured are one draw of the images that there are; another draw would give another metric. To see
how far it would be off, as many images are drawn anew from the measured ones, with repeats, a thousand times over; the
middle 95 % of the metrics so found is the interval. For two models that saw the same images, both are measured on each
draw and the difference is taken: what makes an image easy for both cancels out, so differences are far surer than
either metric.

Frames of a film are alike, so that a hundred of them tell less than a hundred films. They are drawn in runs of frames
that follow each other, the first after the last: an interval from single frames would be too narrow. (Politis & Romano,
"A circular block-resampling procedure for stationary data", 1992.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted

Value = Callable[[Tensor], float]
_PERCENT = (2.5, 97.5)


class Difference(NamedTuple):
    """The difference of two models' metrics, in the metric's unit: on the images, and its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(
    value: Value, counts: Tensor, *, run: int = 1, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of a metric over images.

    Args:
        value: the metric of any images' counts, such as `lambda counts: task.metrics(counts)["miou"]`.
        counts: [images, n], in the order in which the images were taken.
        run: how many images in a row are drawn at a time; 1 for images that have nothing to do with each other, and
            for films about as many frames as stay alike.
        resamples: how often all images are drawn anew.
        seed: the same seed draws the same images.
    Returns:
        (low, high), NaN where the metric of some draw is.
    Raises:
        InputError: a run is below 1, or not shorter than all images together.
    """
    return _bounds([value(counts[rows]) for rows in _draws(len(counts), run, resamples, seed)])


def paired(
    value: Value, ours: Tensor, theirs: Tensor, *, run: int = 1, resamples: int = 1000, seed: int = 0
) -> Difference:
    """value(ours) − value(theirs), of two models on the same images, with its 95 % interval.

    Args: as for `interval`; ours and theirs are [images, n], in the same order of images.
    Raises:
        InputError: as for `interval`, or there are not as many images in both.
    """
    if len(ours) != len(theirs):
        raise InputError(
            f"{len(ours)} and {counted(len(theirs), 'image')} are no pairs",
            do="measure both models on the same images, in the same order",
        )
    draws = _draws(len(ours), run, resamples, seed)
    low, high = _bounds([value(ours[rows]) - value(theirs[rows]) for rows in draws])
    return Difference(value(ours) - value(theirs), low, high)


def non_inferior(difference: Difference, margin: float) -> bool:
    """Report whether ours is, at 95 %, less than `margin` below theirs: the interval's lower end is above −margin.

    Args:
        difference: of a metric for which more is better.
        margin: 0 or more, in the metric's unit: half a point of one from 0 to 1 is 0.005.
    Raises:
        InputError: the margin is below 0.
    """
    if not margin >= 0:
        raise InputError(f"{margin} is no margin", do="give 0 or more, in the metric's unit")
    return difference.low > -margin


def _draws(images: int, run: int, resamples: int, seed: int) -> Tensor:
    """[resamples, images] rows: runs that start anywhere, one after the other, until there are as many as images."""
    if not 1 <= run < images:
        raise InputError(
            f"{counted(images, 'image')} cannot be drawn in runs of {run}",
            why="one run would be all of them, and every draw the same",
            do="give more images, or a run between 1 and their number",
        )
    first = np.random.default_rng(seed).integers(images, size=(resamples, math.ceil(images / run), 1))
    return torch.from_numpy((first + np.arange(run)) % images).flatten(1)[:, :images]


def _bounds(values: list[float]) -> tuple[float, float]:
    low, high = np.percentile(values, _PERCENT)
    return float(low), float(high)
