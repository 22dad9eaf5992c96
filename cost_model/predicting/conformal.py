"""The error of a latency model on shapes that it has not seen: split conformal intervals, calibrated by families.

Rows of one shape family are alike, so that a model which has seen some of a family's rows does well on the others, and
errors of rows that were held out at random promise too narrow an interval for a new model's layers. So whole families
are held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jetvit.cost_model.predicting.roofline import Array
from jetvit.patterns.wording import counted

COVERAGE = 0.9
MIN_ROWS = 10  # Fewer scores than this have no 90 % quantile with the correction for their number.
MIN_FAMILIES = 5
FOLDS = 5
# Where there are too few families, sizes are held out instead. That says little of a new family: the half-width is
# doubled, a convention and no guarantee.
_FEW_FAMILIES = 2.0

# Fits the rows of a boolean mask [n] and returns predictions for the rows outside it.
FitAndPredict = Callable[[np.ndarray], Array]


class Calibration(NamedTuple):
    """half_width: of a 90 % interval of log ms. held_out: "families", or "sizes" where there were too few families."""

    half_width: float
    held_out: str


def calibrate(
    fit_and_predict: FitAndPredict, log_ms: Array, families: Sequence[str], sizes: Sequence[object], *, seed: int = 0
) -> Calibration:
    """Errors of rows that were held out with their whole family, pooled over the folds.

    `fit_and_predict` gets the rows to learn from, True in a mask [n], and returns log ms of the others. `sizes` names
    the batch and tokens of each row. Raises ValueError for fewer than 10 rows, or 2 families and 2 sizes.
    """
    if len(log_ms) < MIN_ROWS:
        raise ValueError(f"{counted(len(log_ms), 'row')}, and an interval needs at least {MIN_ROWS}")
    enough = len(set(families)) >= MIN_FAMILIES
    folds = split(families if enough else [str(size) for size in sizes], seed)
    if max(folds) == 0:
        raise ValueError(f"all rows ({len(log_ms)}) are of one size, and an interval needs at least two sizes")
    errors = np.empty(len(log_ms))
    for fold in range(max(folds) + 1):
        out = folds == fold
        errors[out] = np.abs(fit_and_predict(~out) - log_ms[out])
    return Calibration(quantile(errors) * (1.0 if enough else _FEW_FAMILIES), "families" if enough else "sizes")


def quantile(scores: Array) -> float:
    """The score that a new one is at or below with a probability of at least 90 %, were it exchangeable with these."""
    place = math.ceil(COVERAGE * (len(scores) + 1))
    return float(np.sort(scores)[place - 1]) if place <= len(scores) else math.inf


def split(groups: Sequence[str], seed: int) -> np.ndarray:
    """The fold of each row [n], 0 to at most 4: whole groups in a random order, so that no fold is all of a kind."""
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {name: int(place) % FOLDS for name, place in zip(names, order, strict=True)}
    return np.array([fold[group] for group in groups])
