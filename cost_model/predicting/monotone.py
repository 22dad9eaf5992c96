"""A learned correction of a monotone estimate, made monotone in batch and tokens again.

Trees that must be monotone themselves cannot lower an estimate where it rises, and lose a third of what they could
learn. So the correction is free, and its sum with the estimate is put between two envelopes over a lattice of sizes
that is the same for all calls: the largest sum at any smaller size, and the smallest at any larger one. Both are
monotone, and so is their mean, which moves a sum that was monotone already not at all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jetvit.cost_model.predicting.roofline import BATCH, TOKEN_BITS, TOKENS, Array, round_up

_BATCH_BITS = 3  # Batches 1 to 8, then 10, 12, 14, 16, 20, …; between them the logarithm is interpolated.
_LIMIT = 2.0**52

Function = Callable[[Array], Array]


def monotone(
    sizes: Array, estimate: Function, correction: Function, low: float, high: float, *, batches: bool
) -> Array:
    """estimate + correction at sizes [n, SIZES], never falling with batch or tokens, [n].

    Both map sizes to values [n]; `estimate` never falls with batch or tokens and has no bound, and low ≤ `correction`
    ≤ high. Rows that differ in more than batch and tokens do not touch each other. `batches` is False where every batch
    is 1 by the nature of the kernel.

    A row's envelopes need no size at which the estimate is more than high − low from the row's own: the sum there is
    neither the largest below nor the smallest above. So a part of the lattice is as exact as the whole, and a row's
    value does not depend on the rows that it is asked for with.
    """
    out = np.empty(len(sizes))
    others = np.delete(sizes, [BATCH, TOKENS], axis=1)
    _, group = np.unique(others, axis=0, return_inverse=True)
    group = group.ravel()
    for index in range(group.max(initial=-1) + 1):
        rows = np.flatnonzero(group == index)
        out[rows] = _of_one_family(sizes[rows], estimate, correction, high - low, batches)
    return out


def _of_one_family(sizes: Array, estimate: Function, correction: Function, reach: float, batches: bool) -> Array:
    batch, tokens = sizes[:, BATCH], round_up(sizes[:, TOKENS])
    below, above = _round_down(batch, _BATCH_BITS), round_up(batch, _BATCH_BITS)
    corners = np.unique(np.concatenate([_at(sizes, below, tokens), _at(sizes, above, tokens)]), axis=0)
    values = estimate(corners)
    reach += 1e-9
    highest = values.max() + reach

    def top(axis: int, largest: float) -> float:
        """A size along one axis from which on, whatever the other, the estimate is above all that is needed."""
        probe = corners[:1].copy()
        probe[0, BATCH], probe[0, TOKENS] = below.min(), tokens.min()
        probe[0, axis] = largest
        while estimate(probe)[0] <= highest and probe[0, axis] < _LIMIT:
            probe[0, axis] *= 2
        return float(probe[0, axis])

    axis_b = _lattice(top(BATCH, above.max()), _BATCH_BITS) if batches else np.ones(1)
    axis_t = _lattice(top(TOKENS, tokens.max()), TOKEN_BITS)
    grid_b, grid_t = np.meshgrid(axis_b, axis_t, indexing="ij")
    points = _at(np.repeat(sizes[:1], grid_b.size, 0), grid_b.ravel(), grid_t.ravel())
    first = estimate(points)
    needed = np.zeros(len(points), bool)
    for corner, value in zip(corners, values, strict=True):
        not_above = (
            (points[:, BATCH] <= corner[BATCH]) & (points[:, TOKENS] <= corner[TOKENS]) & (first >= value - reach)
        )
        not_below = (
            (points[:, BATCH] >= corner[BATCH]) & (points[:, TOKENS] >= corner[TOKENS]) & (first <= value + reach)
        )
        needed |= not_above | not_below
    up, down = np.full(len(points), -np.inf), np.full(len(points), np.inf)
    up[needed] = down[needed] = first[needed] + correction(points[needed])
    up, down = up.reshape(grid_b.shape), down.reshape(grid_b.shape)
    for axis in (0, 1):
        up = np.maximum.accumulate(up, axis)
        down = np.flip(np.minimum.accumulate(np.flip(down, axis), axis), axis)

    def at(batch: Array) -> Array:
        place = np.searchsorted(axis_b, batch), np.searchsorted(axis_t, tokens)
        return (up[place] + down[place]) / 2

    between = above > below
    share = np.log(np.where(between, batch / below, 1.0)) / np.log(np.where(between, above / below, 2.0))
    smaller = at(below)
    return smaller + share * (at(above) - smaller)


def _at(sizes: Array, batch: Array, tokens: Array) -> Array:
    sizes = sizes.copy()
    sizes[:, BATCH], sizes[:, TOKENS] = batch, tokens
    return sizes


def _round_down(values: Array, bits: int) -> Array:
    step = 2.0 ** np.maximum(0, np.ceil(np.log2(values)) - bits)
    return np.floor(values / step) * step


def _lattice(top: float, bits: int) -> Array:
    """All whole numbers from 1 to at least `top` that `round_up` leaves as they are."""
    parts, end = [np.arange(1.0, 2.0**bits + 1)], 2.0**bits
    while end < top:
        step = 2 * end / 2.0**bits
        parts.append(np.arange(end + step, 2 * end + 1, step))
        end *= 2
    return np.concatenate(parts)
