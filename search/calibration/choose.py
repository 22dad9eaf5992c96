"""Choosing one option a site: the fastest plan whose joint drift keeps a bound, or the least drift within a latency.

Drift is a squared error, so the drifts of single sites add up roughly, and the plan that is best by their sum is found
exactly (`jetvit.cost_model.optimum`). Only roughly: whole plans are measured before one is believed. A bisection over
the bound on the sum finds where the measured drift crosses its own bound; then come the plans that are faster than the
best so far and promise the least drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from jetvit.cost_model.optimum import Costs, Rated, Selection, fastest, least_loss

# What a plan must be faster by, as a share of the attention's latency, to be worth a measurement.
_WORTH = 1e-3
# The bisection ends where the bounds differ by less than this share.
_CLOSE = 1e-2
# How many plans are asked for at a time; each costs a few integer programs.
_POOL = 6
# An option that drifts more than so many times the bound, alone, is left out: no other makes up for it, and integer
# programming tells losses apart by a part of the largest.
HOPELESS = 10


@dataclass(frozen=True)
class Found:
    """The plans that a search found; a `Rated` has the joint drift as its loss, and the latency by the costs.

    * plans: the original and those faster than it, where they keep the bounds, the best first; empty if none does.
    * measured: every plan that was measured, the original first.
    * exhausted: whether the search ended because no more plans may be measured.
    """

    plans: tuple[Rated, ...]
    measured: tuple[Rated, ...]
    exhausted: bool = False


def choose(
    costs: Costs,
    joint_drift: Callable[[Selection], float],
    max_drift: float,
    max_latency_ms: float | None = None,
    measurements: int = 12,
    count: int = 3,
) -> Found:
    """Search the plan that is fastest within a bound on drift; with a latency bound, the one of least drift.

    Args:
        costs: latency and drift of every option alone. Option 0 of each site is full attention, of loss 0.
        joint_drift: measures a whole plan; called once a plan, never for the original.
        max_drift: the bound on the joint drift, 0 or more.
        max_latency_ms: the bound on the latency by the costs, if any.
        measurements: how many plans are measured at most; as many again where none of the plans of least summed drift
            keeps both bounds.
        count: how many plans are wanted, the best and those after it.
    """
    search = _Search(costs, joint_drift, max_drift, measurements)
    if max_latency_ms is None:
        search.fastest(count)
        return search.found(lambda plan: (plan.latency_ms, plan.loss))
    search.least_drift(max_latency_ms)
    if not search.within(max_latency_ms):
        search.left = measurements
        search.fastest(count)
    return search.found(lambda plan: (plan.loss, plan.latency_ms), max_latency_ms)


class _Search:
    """The plans that were measured, and how many more may be."""

    def __init__(
        self, costs: Costs, joint_drift: Callable[[Selection], float], max_drift: float, measurements: int
    ) -> None:
        limit = HOPELESS * max_drift
        loss = [[each if each <= limit else math.inf for each in some] for some in costs.loss]
        self.costs, self.max_drift, self.left = replace(costs, loss=loss), max_drift, measurements
        self._joint_drift = joint_drift
        self.original = costs.rate((0,) * len(loss))
        self.measured = {self.original.selection: self.original}
        self.best = self.original

    def fastest(self, count: int) -> None:
        """Measure plans until the fastest that keeps the drift bound is as good as found, and those after it."""
        budget = self.left
        bound = self._bisect(stop_at=budget // 2)
        while self.left >= count and self._improve():
            pass
        for plan in fastest(self.costs, bound, count):
            if self.left and plan.latency_ms < self.original.latency_ms:
                self._keeps(plan)

    def least_drift(self, max_latency_ms: float) -> None:
        """Measure the plans of least summed drift within a latency bound; nothing has less than the original."""
        if self.within(max_latency_ms):
            return
        for plan in least_loss(self.costs, max_latency_ms, self.left):
            self._keeps(plan)

    def within(self, max_latency_ms: float = math.inf) -> list[Rated]:
        """The measured plans that keep both bounds, without those that are no faster than the original."""
        gains = [plan for plan in self.measured.values() if plan.latency_ms < self.original.latency_ms]
        kept = [plan for plan in (self.original, *gains) if plan.loss <= self.max_drift]
        return [plan for plan in kept if plan.latency_ms <= max_latency_ms]

    def found(self, order: Callable[[Rated], tuple[float, float]], max_latency_ms: float = math.inf) -> Found:
        """The plans measured so far, the best by `order` first."""
        plans = tuple(sorted(self.within(max_latency_ms), key=order))
        return Found(plans, tuple(self.measured.values()), not self.left)

    def _keeps(self, plan: Rated) -> bool:
        """Report whether the measured drift of a plan keeps the bound."""
        if plan.selection not in self.measured:
            self.left -= 1
            drift = self._joint_drift(plan.selection)
            self.measured[plan.selection] = Rated(plan.selection, plan.latency_ms, drift)
        known = self.measured[plan.selection]
        if not known.loss <= self.max_drift:
            return False
        if known.latency_ms < self.best.latency_ms:
            self.best = known
        return True

    def _bisect(self, stop_at: int) -> float:
        """Move the bound on the summed drift to where the measured drift crosses its own; the largest that is kept.

        The first bound is the one asked for, as if drift added up; it is doubled while it is kept.
        """
        low, high, last = 0.0, math.inf, self._fastest(math.inf)
        bound = self.max_drift
        while self.left > stop_at:
            plan = self._fastest(bound)
            if self._keeps(plan):
                low = bound
                if plan.latency_ms <= last.latency_ms:
                    break
            else:
                # Everything down to this plan's own sum is the same plan.
                high = min(bound, plan.loss)
            bound = min(2 * low, last.loss) if high == math.inf else (low + high) / 2
            if bound <= low or (high < math.inf and high - low <= _CLOSE * high):
                break
        return low

    def _fastest(self, bound: float) -> Rated:
        """The fastest plan within a bound of 0 or more on the summed drift."""
        # At a bound of next to nothing integer programming may lose even the original.
        return next(iter(fastest(self.costs, bound)), self.original)

    def _improve(self) -> bool:
        """Look for a plan that is faster than the best and keeps the bound; whether one was found."""
        limit = self.best.latency_ms - _WORTH * abs(self.best.latency_ms)
        for plan in least_loss(self.costs, limit, _POOL):
            if plan.selection in self.measured:
                continue
            if not self.left:
                return False
            if self._keeps(plan):
                return True
        return False
