"""The search for a plan whose drift counts after its refit.

To refit a whole plan takes minutes, so only a few are. The search before it goes by cheap drifts: those of plans whose
attentions were each refitted alone. A joint refit also repairs what earlier attentions lost, so the bound on the cheap
drift is moved until the refitted one meets the bound that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jetvit.cost_model.optimum import Costs, Rated, Selection
from jetvit.search.calibration.choose import Found, choose

_REFITS = 4
# How many whole plans are refitted at most.
_MEASURED = 6
# How many whole plans are measured with the weights of single refits, for each bound.
_FIRST = 1.5
# The first bound on the cheap drift, in bounds on the refitted one.
_AIM = 0.95
# The share of the bound that is aimed at: a plan that misses it by a hair is of no use.
_RESCUES = 2
# How many more plans are refitted where none kept the bound.
_STEP = 4.0
# The bound on the cheap drift moves by this factor at most.


def refitted_plans(
    costs: Costs,
    alone: Callable[[Selection], float],
    refitted: Callable[[Selection], float],
    max_drift: float,
    max_latency_ms: float | None = None,
) -> Found:
    """Search the plan that is fastest within a bound on the drift after its refit.

    Args:
        costs: latency, and drift after its own refit, of every option alone; option 0 of each site is full attention.
        alone: the drift of a whole plan whose attentions were each refitted alone.
        refitted: its drift after its joint refit.
        max_drift: the bound on the latter.
        max_latency_ms: a bound on the latency by the costs; the plan is then the one of least drift within it.
    """
    search = _Search(costs, alone, refitted, max_drift)
    if max_latency_ms is None:
        search.fastest()
        return search.found(lambda plan: (plan.latency_ms, plan.loss), math.inf)
    search.least_drift(max_latency_ms)
    return search.found(lambda plan: (plan.loss, plan.latency_ms), max_latency_ms)


class _Search:
    """The plans that were refitted, and their drifts after it."""

    def __init__(
        self,
        costs: Costs,
        alone: Callable[[Selection], float],
        refitted: Callable[[Selection], float],
        max_drift: float,
    ):
        self.costs, self.max_drift = costs, max_drift
        self._alone, self._refitted = alone, refitted
        original = costs.rate((0,) * len(costs.loss))
        self.measured = {original.selection: original}

    def fastest(self) -> None:
        """Refit the fastest plan within a bound on the cheap drift, and move that bound to where plans keep theirs.

        Where none does, more plans are refitted, each with half of the bound of the one before.
        """
        bound, kept, missed = _FIRST * self.max_drift, 0.0, math.inf
        for tries in range(_REFITS + _RESCUES):
            if tries >= _REFITS and kept:
                return
            plan = choose(self.costs, self._alone, bound, measurements=_MEASURED).plans[0]
            if plan.selection not in self.measured:
                self._refit(plan)
            elif any(plan.selection) and kept:
                return  # another bound, and the same plan again
            drift = self.measured[plan.selection].loss
            if drift <= self.max_drift:
                kept = max(kept, bound) if any(plan.selection) else kept
            else:
                missed = min(missed, bound)
            moved = bound * min(max(_AIM * self.max_drift / max(drift, 1e-9), 1 / _STEP), _STEP)
            if not kept < moved < missed:
                moved = math.sqrt(kept * missed) if 0 < kept < missed < math.inf else moved
            if tries + 1 >= _REFITS:
                moved = bound / 2
            if math.isclose(moved, bound, rel_tol=0.02) or (not any(plan.selection) and bound > self._largest):
                return
            bound = moved

    @property
    def _largest(self) -> float:
        """A bound on the cheap drift that every plan keeps."""
        return sum(max(each for each in some if each < math.inf) for some in self.costs.loss) * _STEP

    def least_drift(self, max_latency_ms: float) -> None:
        """Refit the plans of least cheap drift within a latency, until one keeps the bound on drift."""
        for plan in choose(self.costs, self._alone, math.inf, max_latency_ms, _MEASURED).plans[:_REFITS]:
            if plan.selection not in self.measured:
                self._refit(plan)
            if self.measured[plan.selection].loss <= self.max_drift:
                return

    def found(self, order: Callable[[Rated], tuple[float, float]], max_latency_ms: float) -> Found:
        """The refitted plans that keep both bounds, the best by `order` first."""
        kept = [plan for plan in self.measured.values() if plan.loss <= self.max_drift]
        plans = tuple(sorted((plan for plan in kept if plan.latency_ms <= max_latency_ms), key=order))
        return Found(plans, tuple(self.measured.values()))

    def _refit(self, plan: Rated) -> None:
        drift = self._refitted(plan.selection)
        self.measured[plan.selection] = Rated(plan.selection, plan.latency_ms, drift)
