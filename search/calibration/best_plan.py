"""The search for the best plan: by costs of single sites, by joint drift, and in the end by whole models."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jetvit.cost_model import FULL, Choice, Measured, SitePlan
from jetvit.cost_model.optimum import Costs, Rated, Selection, confirmed
from jetvit.cost_model.predicting.estimate import Answer
from jetvit.patterns.errors import InputError, PlanError
from jetvit.patterns.wording import counted
from jetvit.search.calibration.choose import HOPELESS, Found, choose
from jetvit.search.calibration.model_latency import LatencySource, WholeLatencies, latency_record, warn_of_noise
from jetvit.search.calibration.trial import Trial

log = logging.getLogger(__name__)

# How many plans are timed as whole models before one is returned.
_CONFIRMED = 3
# How often the bound on the attention is tightened, where whole models take more than their attentions promise.
_TRIES = 3


@dataclass(frozen=True)
class Budget:
    """A bound on the latency of the whole model: `value` ms, or a share of the original's. text: as it was given."""

    value: float
    relative: bool
    text: str

    @classmethod
    def parse(cls, budget: float | str) -> Budget:
        """From a number or text. Raises InputError for what is no share above 0 and up to 1, and no time above 0."""
        text = str(budget).strip().lower()
        try:
            value = float(text.removesuffix("ms"))
        except ValueError:
            value = math.nan
        relative = not text.endswith("ms")
        if not 0 < value < math.inf or (relative and value > 1):
            raise InputError(f"{budget!r} is no budget", do='give a share of the full latency (0.6) or a time ("5ms")')
        return cls(value, relative, str(budget))

    def limit_ms(self, full_ms: float) -> float:
        """The bound where the original takes `full_ms`."""
        return self.value * full_ms if self.relative else self.value


@dataclass(frozen=True)
class Options:
    """The options of each site, with the latency and the drift of each alone; number 0 is full attention."""

    names: list[str]
    labels: list[list[Choice]]
    answers: list[list[Answer]]
    drifts: list[list[float]]

    @classmethod
    def of(
        cls,
        alternatives: Mapping[str, Sequence[Choice]],
        answers: Mapping[str, Mapping[Choice, Answer]],
        drifts: Mapping[str, Mapping[Choice, float]],
    ) -> Options:
        """From tables by site name, all in the order of the graph."""
        labels = {name: [FULL, *some] for name, some in alternatives.items()}
        return cls(
            list(labels),
            list(labels.values()),
            [[answers[name][choice] for choice in some] for name, some in labels.items()],
            [[0.0, *(drifts[name][choice] for choice in some[1:])] for name, some in labels.items()],
        )

    @property
    def costs(self) -> Costs:
        """Latencies and drifts for a search. A gain within the spread of the measurements counts as none."""
        return Costs([[_sure_ms(each, some[0]) for each in some] for some in self.answers], self.drifts)

    def attention_ms(self, selection: Selection) -> float:
        """The latencies of all attentions together."""
        return math.fsum(some[number].ms for some, number in zip(self.answers, selection, strict=True))

    def choices(self, selection: Selection) -> dict[str, Choice]:
        """Name → choice of the sites that are not full."""
        chosen = {name: self.labels[i][n] for i, (name, n) in enumerate(zip(self.names, selection, strict=True))}
        return {name: choice for name, choice in chosen.items() if choice.kind != "full"}

    def site_plan(self, index: int, number: int) -> SitePlan:
        """A site of the plan, with all that was measured there."""
        rows = list(zip(self.labels[index], self.drifts[index], self.answers[index], strict=True))
        choice, drift, answer = rows[number]
        if number:
            why = f"{answer.ms:.3g} ms for {rows[0][2].ms:.3g} ms, within the drift bound"
        else:
            why = "full attention: nothing faster stays within the drift bound"
        measured = tuple(Measured(each, _finite(drift), answer.ms) for each, drift, answer in rows)
        return SitePlan(self.names[index], choice, why, _finite(drift), answer.ms, measured)


def _sure_ms(answer: Answer, full: Answer) -> float:
    """A latency to choose by: that of full attention where two measurements overlap."""
    overlap = answer.high >= full.low and answer.source == full.source == "measured"
    return max(answer.ms, full.ms) if overlap else answer.ms


@dataclass(frozen=True)
class BestPlan:
    """The plan that is returned, with its joint drift, among all that were measured.

    full_ms, plan_ms: whole models. speedup: the ratio of the two, and its 95 % interval. doubts: reasons to distrust
    these timings.
    """

    plan: Rated
    measured: tuple[Rated, ...]
    full_ms: float
    plan_ms: float
    speedup: tuple[float, float, float]
    doubts: Sequence[str] = ()

    def record(self, how: str) -> dict[str, Any]:
        """Entries for the provenance."""
        return latency_record(how, self.full_ms, self.plan_ms, self.speedup, self.doubts)


class PlanSearch:
    """The search for the plan, in which whole models have the last word.

    Args:
        trial: measures joint drift.
        source: gives the latencies of whole models.
        options: what each site may become.
        max_drift: the bound on the joint drift.
        budget: the bound on the latency of the whole model, if any.
        find: finds the plans within a bound on the latency of their attentions, if any; by default `choose`, with the
            joint drift that `trial` measures.
    """

    def __init__(
        self,
        trial: Trial,
        source: LatencySource,
        options: Options,
        max_drift: float,
        budget: Budget | None,
        find: Callable[[float | None], Found] | None = None,
    ):
        self.source, self.options, self.max_drift, self.budget = source, options, max_drift, budget
        self.costs = options.costs
        self.full = self.costs.rate((0,) * len(options.names))
        joint = cache(lambda selection: trial.joint(options.choices(selection)))
        self._find = find or (lambda bound_ms: choose(self.costs, joint, max_drift, bound_ms))
        drifts = [drift for some in options.drifts for drift in some[1:]]
        if hopeless := sum(not drift <= HOPELESS * max_drift for drift in drifts):
            log.info(
                "%d of %s not part of any plan: alone they drift more than %d times the bound",
                hopeless,
                counted(len(drifts), "choice is", "choices are"),
                HOPELESS,
            )

    def best(self) -> BestPlan:
        """The plan to return. Raises PlanError if none meets the budget."""
        if self.budget is None:
            found = self._find(None)
            candidates = [plan for plan in found.plans if any(plan.selection)][:_CONFIRMED]
            timed = self._time(candidates)
            return self._worth_it(confirmed(candidates, _latency_of(candidates, timed)), candidates, timed, found)
        return self._within(self.budget)

    def _within(self, budget: Budget) -> BestPlan:
        """The plan of least drift whose whole model keeps the budget."""
        full_ms = self._time([]).median_ms[0]
        bound = self.full.latency_ms - (full_ms - budget.limit_ms(full_ms)) / self._share
        fastest_ms = math.inf
        for _ in range(_TRIES):
            found = self._find(bound)
            # Where none promises to keep the budget, the fastest of all are asked.
            kept = (plan for plan in found.measured if plan.loss <= self.max_drift)
            fast = sorted(kept, key=lambda plan: (plan.latency_ms, plan.loss))
            candidates = (found.plans or fast)[:_CONFIRMED]
            timed = self._time(candidates)
            full_ms, limit_ms = timed.median_ms[0], budget.limit_ms(timed.median_ms[0])
            best = confirmed(candidates, _latency_of(candidates, timed), limit_ms)
            if best is not None:
                return self._worth_it(best, candidates, timed, found)
            fastest_ms = min(fastest_ms, *timed.median_ms[1:])
            if not found.plans:
                break
            missed = min(timed.median_ms[1:]) - limit_ms
            bound = min(plan.latency_ms for plan in candidates) - missed / self._share
        raise PlanError(
            f"no plan meets the budget of {budget.text}",
            why=f"the full model takes {full_ms:.1f} ms; the fastest plan with drift ≤ {self.max_drift:g} takes about "
            f"{fastest_ms:.1f} ms",
            do="allow more drift or more time; a trained search reaches further",
        )

    @property
    def _share(self) -> float:
        return max(self.source.share, 1e-9)

    def _time(self, plans: Sequence[Rated]) -> WholeLatencies:
        return self.source.whole([self.options.choices(plan.selection) for plan in plans])

    def _worth_it(
        self, best: Rated | None, candidates: Sequence[Rated], timed: WholeLatencies, found: Found
    ) -> BestPlan:
        """The best plan, or the original where that is faster; says so where the rounds cannot tell them apart."""
        self._log_left_out(candidates, found)
        full_ms = timed.median_ms[0]
        doubts = self.source.doubts
        unchanged = BestPlan(self.full, found.measured, full_ms, full_ms, (1.0, 1.0, 1.0), doubts)
        if best is None or not any(best.selection):
            return unchanged
        index = 1 + [plan.selection for plan in candidates].index(best.selection)
        speedup = timed.speedup(index)
        plan = next(plan for plan in candidates if plan.selection == best.selection)
        how = "measured" if self.source.confirms else "estimated"
        if speedup[2] < 1:
            log.warning(
                "the best plan is slower than the original, %s as a whole (%.4g ms for %.4g ms, a ratio of %.3f, "
                "95 %% interval %.3f to %.3f): every site stays full",
                how,
                best.latency_ms,
                full_ms,
                *speedup,
            )
            return unchanged
        if not doubts:
            warn_of_noise(speedup, best.latency_ms, full_ms, how)
        return BestPlan(plan, found.measured, full_ms, best.latency_ms, speedup, doubts)

    def _log_left_out(self, candidates: Sequence[Rated], found: Found) -> None:
        """Log how many plans were not measured further."""
        timed = {plan.selection for plan in candidates}
        left = sum(any(plan.selection) and plan.selection not in timed for plan in found.plans)
        if left:
            log.info(
                "%s within the bounds not %s as a whole: %s promised more",
                counted(left, "plan is", "plans are"),
                "timed" if self.source.confirms else "estimated",
                counted(len(timed), "other", "others"),
            )
        if found.exhausted:
            log.info(
                "the drifts of %s were measured, the most that a calibration measures: there may be a better plan",
                counted(len(found.measured) - 1, "whole plan"),
            )


def _latency_of(plans: Sequence[Rated], timed: WholeLatencies) -> Callable[[Selection], float]:
    return dict(zip((plan.selection for plan in plans), timed.median_ms[1:], strict=True)).__getitem__


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
