"""The best choice at every site under a budget: exact, by integer programming.

A plan's latency is a constant, plus what each site's option takes, plus a correction for pairs of options that are
taken together; its loss of quality likewise. Either of them is minimised while the other stays within a bound. `front`
gives every trade-off between the two. HiGHS, by `scipy.optimize.milp`, does the search; `jetvit.cost_model.paths` finds
the same by another road where corrections are between neighbours alone, and the tests hold one against the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Selection = tuple[int, ...]
"""One option number a site."""

Pick = tuple[int, int]
"""A site's number and the number of one of its options."""

Measure = Literal["latency_ms", "loss"]

# HiGHS keeps bounds and whole numbers to 1e-6. All coefficients are scaled to at most 1, and what differs by less than
# this part of the largest cost counts as equal, well beyond that tolerance: asked for more, HiGHS takes 0.999999 of a
# pick for a whole one that keeps a bound, finds it cannot be rounded, and drops good plans with it.
_SAME = 1e-5


@dataclass(frozen=True)
class Costs:
    """The costs of the options of every site, alone and in pairs.

    * latency_ms, loss: by site and option. Loss is in any unit that adds up; an infinite one is never taken.
    * latency_pairs, loss_pairs: what taking both picks of a pair adds, to be negative if it is less than the sum.
    * fixed_ms: what every plan takes.

    Raises ValueError for sites without options, for tables of different shapes, for NaN, and for pairs of one site or
    of options that are not there.
    """

    latency_ms: Sequence[Sequence[float]]
    loss: Sequence[Sequence[float]]
    latency_pairs: Mapping[tuple[Pick, Pick], float] = field(default_factory=dict)
    loss_pairs: Mapping[tuple[Pick, Pick], float] = field(default_factory=dict)
    fixed_ms: float = 0.0

    def __post_init__(self) -> None:
        if [len(options) for options in self.latency_ms] != [len(options) for options in self.loss]:
            raise ValueError("latency_ms and loss have different numbers of sites or options")
        if not all(self.latency_ms):
            raise ValueError("a site has no options")
        pairs = (*self.latency_pairs.items(), *self.loss_pairs.items())
        finite = [self.fixed_ms, *(value for options in self.latency_ms for value in options), *(v for _, v in pairs)]
        if not all(map(math.isfinite, finite)):
            raise ValueError("a latency or a correction is not finite")
        if any(math.isnan(value) or value == -math.inf for options in self.loss for value in options):
            raise ValueError("a loss is NaN or −∞")
        for (one, other), _ in pairs:
            if one[0] == other[0]:
                raise ValueError(f"the picks {one} and {other} are of one site")
            for site, option in (one, other):
                if not (0 <= site < len(self.loss) and 0 <= option < len(self.loss[site])):
                    raise ValueError(f"there is no option {option} of site {site}")

    def rate(self, selection: Selection) -> Rated:
        """The latency and the loss of a plan."""
        taken = set(enumerate(selection))

        def total(table: Sequence[Sequence[float]], pairs: Mapping[tuple[Pick, Pick], float]) -> float:
            # fsum: the same sum in whatever order the pairs stand.
            alone = [options[number] for options, number in zip(table, selection, strict=True)]
            return math.fsum([*alone, *(value for pair, value in pairs.items() if taken.issuperset(pair))])

        latency_ms = self.fixed_ms + total(self.latency_ms, self.latency_pairs)
        return Rated(selection, latency_ms, total(self.loss, self.loss_pairs))


@dataclass(frozen=True)
class Rated:
    """A plan with what it costs."""

    selection: Selection
    latency_ms: float
    loss: float


def least_loss(costs: Costs, max_latency_ms: float, count: int = 1, *, most_first: int | None = None) -> list[Rated]:
    """The plans of least loss within a latency bound in ms, the best first; fewer than `count` if there are no more.

    With `most_first`, at most so many sites take their first option.

    Of plans with the same loss the fastest comes first. Every plan keeps the bound to the bit. One whose latency is
    below it by less than 1e-5 of the largest cost may be passed over where another is as little beyond it.
    """
    return _best(costs, "loss", "latency_ms", max_latency_ms, count, most_first)


def fastest(costs: Costs, max_loss: float, count: int = 1) -> list[Rated]:
    """The fastest plans within a bound on the loss, the best first; fewer than `count` if there are no more.

    Of plans with the same latency that of least loss comes first. The bound is kept as by `least_loss`.
    """
    return _best(costs, "latency_ms", "loss", max_loss, count)


def front(costs: Costs) -> list[Rated]:
    """Every plan that no other plan beats in both latency and loss, from the slowest to the fastest.

    Of plans that cost the same, one; "the same" is within 1e-5 of the largest number among the costs.
    """
    step = _SAME * _scale(costs, "latency_ms")
    points: list[Rated] = []
    bound = math.inf
    while found := least_loss(costs, bound):
        points.append(found[0])
        bound = found[0].latency_ms - step
    return points


def confirmed(
    plans: Sequence[Rated], latency_ms: Callable[[Selection], float], max_latency_ms: float = math.inf
) -> Rated | None:
    """The best of some plans by measured latency, the model's word for it being only a reason to measure.

    Args:
        plans: the candidates, as `least_loss` or `fastest` give them.
        latency_ms: measures a plan, in ms.
        max_latency_ms: the bound that the measured latency has to keep, if any: then the plan of least loss is taken,
            else the fastest.
    Returns:
        A plan with its measured latency; None if none keeps the bound.
    """
    measured = [Rated(each.selection, latency_ms(each.selection), each.loss) for each in plans]
    if max_latency_ms == math.inf:
        return min(measured, key=lambda each: (each.latency_ms, each.loss), default=None)
    within = [each for each in measured if each.latency_ms <= max_latency_ms]
    return min(within, key=lambda each: (each.loss, each.latency_ms), default=None)


def _best(
    costs: Costs, goal: Measure, limited: Measure, bound: float, count: int, most_first: int | None = None
) -> list[Rated]:
    found: list[Rated] = []
    program = _Program(costs)
    if most_first is not None:
        program.allow_first(most_first)
    while len(found) < count:
        best = program.solve(goal, limited, bound)
        if best is None:
            break
        # Of all that reach the same goal the cheapest in the other measure.
        least = getattr(best, goal) + _SAME * _scale(costs, goal)
        cheaper = program.solve(limited, goal, least)
        if cheaper is not None and getattr(cheaper, limited) < getattr(best, limited):
            best = cheaper
        found.append(best)
        program.forbid(best.selection)
    return found


def _scale(costs: Costs, measure: Measure) -> float:
    """The largest number among the costs."""
    pairs = costs.latency_pairs if measure == "latency_ms" else costs.loss_pairs
    alone = [value for options in getattr(costs, measure) for value in options if math.isfinite(value)]
    return max((abs(value) for value in (*alone, *pairs.values())), default=0.0) or 1.0


class _Program:
    """The integer program: a 0-1 variable a pick, one pick a site, and a variable for each pair with a correction.

    The variable of a pair is the product of the two picks' own, held there by three inequalities; it would be a whole
    number by itself, but HiGHS rounds with more success where it is told so.
    """

    def __init__(self, costs: Costs):
        self.costs = costs
        self.picks = [(site, option) for site, options in enumerate(costs.loss) for option in range(len(options))]
        self.pairs = sorted({*costs.latency_pairs, *costs.loss_pairs})
        self._column = {pick: index for index, pick in enumerate(self.picks)}
        self._rows: list[tuple[dict[int, float], float, float]] = []
        for site in range(len(costs.loss)):
            self._rows.append(({self._column[pick]: 1.0 for pick in self.picks if pick[0] == site}, 1.0, 1.0))
        for index, (one, other) in enumerate(self.pairs, len(self.picks)):
            first, second = self._column[one], self._column[other]
            self._rows.append(({first: 1.0, second: 1.0, index: -1.0}, -math.inf, 1.0))
            self._rows += [({index: 1.0, each: -1.0}, -math.inf, 0.0) for each in (first, second)]

    def forbid(self, selection: Selection) -> None:
        """Take one plan out."""
        taken = {self._column[pick]: 1.0 for pick in enumerate(selection)}
        self._rows.append((taken, -math.inf, len(selection) - 1.0))

    def allow_first(self, most: int) -> None:
        """Let at most so many sites take their first option."""
        firsts = {self._column[pick]: 1.0 for pick in self.picks if pick[1] == 0}
        self._rows.append((firsts, -math.inf, float(most)))

    def solve(self, goal: Measure, limited: Measure, bound: float) -> Rated | None:
        """The plan that minimises one measure while the other stays within a bound; None if there is none."""
        if not self.costs.loss:
            empty = self.costs.rate(())
            return empty if getattr(empty, limited) <= bound and not self._rows else None
        for tightened in (0.0, _SAME):
            selection = self._optimum(goal, limited, bound - tightened * _scale(self.costs, limited))
            if selection is None:
                return None
            rated = self.costs.rate(selection)
            if getattr(rated, limited) <= bound:
                return rated
            # Within HiGHS's tolerance of the bound, and beyond it.
        raise RuntimeError(f"HiGHS keeps no bound: {rated} is beyond {bound}")

    def _optimum(self, goal: Measure, limited: Measure, bound: float) -> Selection | None:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        rows = list(self._rows)
        if math.isfinite(bound):
            scale = _scale(self.costs, limited)
            fixed = self.costs.fixed_ms if limited == "latency_ms" else 0.0
            weights = self._weights(limited) / scale
            rows.append((dict(enumerate(weights.tolist())), -math.inf, (bound - fixed) / scale))
        entries = [(row, column, value) for row, (terms, _, _) in enumerate(rows) for column, value in terms.items()]
        row_numbers, columns, values = zip(*entries, strict=True)
        size = len(self.picks) + len(self.pairs)
        matrix = coo_array((values, (row_numbers, columns)), shape=(len(rows), size)).tocsc()
        # scipy 1.13 hands the indices to HiGHS as they are, which takes no others.
        matrix.indices, matrix.indptr = matrix.indices.astype("int32"), matrix.indptr.astype("int32")
        low, high = (np.array([row[side] for row in rows]) for side in (1, 2))
        upper = np.ones(size)
        upper[[self._column[pick] for pick in self.picks if self.costs.loss[pick[0]][pick[1]] == math.inf]] = 0.0
        result = milp(
            self._weights(goal) / _scale(self.costs, goal),
            integrality=np.ones(size),
            bounds=Bounds(0.0, upper),
            constraints=LinearConstraint(matrix, low, high),
            options={"mip_rel_gap": 0.0},
        )
        if result.status == 2:
            return None
        if result.status != 0:
            raise RuntimeError(f"HiGHS found no optimum: {result.message}")
        chosen = sorted(pick for pick, taken in zip(self.picks, result.x, strict=False) if taken > 0.5)
        return tuple(option for _, option in chosen)

    def _weights(self, measure: Measure) -> np.ndarray:
        """The coefficients of a measure; an option that is never taken has any."""
        table, pairs = getattr(self.costs, measure), self.costs.latency_pairs
        if measure == "loss":
            pairs = self.costs.loss_pairs
        alone = [table[site][option] if math.isfinite(table[site][option]) else 0.0 for site, option in self.picks]
        return np.array([*alone, *(pairs.get(pair, 0.0) for pair in self.pairs)])
