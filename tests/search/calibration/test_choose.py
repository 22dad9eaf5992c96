"""The choice against brute force, on problems small enough for it."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jetvit.cost_model.optimum import Costs, Rated, Selection
from jetvit.search.calibration.choose import choose

INF = math.inf
FULL_MS = 10.0
# What integer programming takes for equal, of the largest number among the costs.
SAME = 1e-5

latencies = st.floats(0.5, 20).map(lambda x: round(x, 3))
drifts = st.floats(0, 2).map(lambda x: round(x, 4)) | st.just(INF)
options = st.tuples(latencies, drifts)
tables = st.lists(st.lists(options, max_size=2), min_size=1, max_size=4)
bounds = st.floats(0, 3).map(lambda x: round(x, 3))


def costs_of(table: list[list[tuple[float, float]]]) -> Costs:
    """Full attention of 10 ms at each site, and these alternatives (latency in ms, drift alone)."""
    return Costs(
        [[FULL_MS, *(ms for ms, _ in some)] for some in table], [[0.0, *(d for _, d in some)] for some in table]
    )


class Joint:
    """A joint drift, and how often it was measured."""

    def __init__(self, costs: Costs, factors: dict[Selection, float] | None = None):
        self.costs, self.factors, self.asked = costs, factors or {}, []

    def __call__(self, selection: Selection) -> float:
        self.asked.append(selection)
        return self.of(selection)

    def of(self, selection: Selection) -> float:
        return self.costs.rate(selection).loss * self.factors.get(selection, 1.0) if any(selection) else 0.0


def plans(costs: Costs) -> list[Rated]:
    return [costs.rate(each) for each in itertools.product(*(range(len(some)) for some in costs.loss))]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Costs, Joint]:
    """Costs, and a joint drift that is anywhere between half and twice the sum, or infinite."""
    costs = costs_of(draw(tables))
    factors = st.floats(0.5, 2) | st.sampled_from([1.0, INF])
    some = {plan.selection: draw(factors) for plan in plans(costs) if 0 < plan.loss < INF}
    return costs, Joint(costs, some)


@settings(max_examples=60)
@given(problems(), bounds, st.none() | st.floats(5, 45), st.integers(1, 16))
def test_both_bounds_hold_and_the_work_is_bounded(
    problem: tuple[Costs, Joint], max_drift: float, max_latency_ms: float | None, measurements: int
) -> None:
    costs, joint = problem
    found = choose(costs, joint, max_drift, max_latency_ms, measurements)
    for plan in found.plans:
        assert plan.loss == joint.of(plan.selection) <= max_drift
        assert plan.latency_ms == costs.rate(plan.selection).latency_ms <= (max_latency_ms or INF)
    assert len(joint.asked) == len(set(joint.asked)) <= measurements * (1 if max_latency_ms is None else 2)
    assert (0,) * len(costs.loss) not in joint.asked
    assert {plan.selection for plan in found.measured} == {*joint.asked, (0,) * len(costs.loss)}
    assert all(costs.rate(selection).loss < INF for selection in joint.asked)
    by_latency = [(plan.latency_ms, plan.loss) for plan in found.plans]
    order = by_latency if max_latency_ms is None else [pair[::-1] for pair in by_latency]
    assert order == sorted(order)
    if max_latency_ms is None:
        assert found.plans[0].latency_ms <= FULL_MS * len(costs.loss)


@settings(max_examples=60)
@given(tables, bounds)
def test_where_drift_adds_up_nothing_is_faster(table: list[list[tuple[float, float]]], max_drift: float) -> None:
    """No plan by brute force beats the choice, but for one as near to the bound as integer programming can tell."""
    costs = costs_of(table)
    found = choose(costs, Joint(costs), max_drift)
    largest = max((d for some in costs.loss for d in some if d < INF), default=0.0)
    within = [plan.latency_ms for plan in plans(costs) if plan.loss <= max_drift - SAME * largest]
    optimum = min(within, default=FULL_MS * len(table))
    assert found.plans[0].latency_ms <= optimum + SAME * max(ms for some in costs.latency_ms for ms in some)


@settings(max_examples=60)
@given(tables, bounds, st.integers(0, 100))
def test_where_drift_adds_up_nothing_within_the_latency_has_less(
    table: list[list[tuple[float, float]]], max_drift: float, place: int
) -> None:
    costs = costs_of(table)
    every = plans(costs)
    limit = every[place % len(every)].latency_ms
    within = [plan.loss for plan in every if plan.latency_ms <= limit]
    assume(min(within) < INF)
    found = choose(costs, Joint(costs), max_drift, limit)
    if min(within) <= max_drift:
        largest = max(d for some in costs.loss for d in some if d < INF)
        assert found.plans[0].loss <= min(within) + SAME * largest
    else:
        assert found.plans == ()


@settings(max_examples=30)
@given(problems(), bounds, st.none() | st.floats(5, 45))
def test_the_same_problem_has_the_same_answer(
    problem: tuple[Costs, Joint], max_drift: float, max_latency_ms: float | None
) -> None:
    costs, joint = problem
    assert choose(costs, joint, max_drift, max_latency_ms) == choose(costs, joint, max_drift, max_latency_ms)


def test_joint_drift_decides_and_not_the_sum() -> None:
    """Two choices that are harmless alone and ruinous together are not taken together."""
    costs = costs_of([[(1.0, 0.01)], [(1.0, 0.02)]])
    found = choose(costs, Joint(costs, {(1, 1): 500.0}), 0.3)
    assert sum(found.plans[0].selection) == 1
    assert found.plans[0].loss < 0.3


def test_drift_that_is_less_together_than_its_sum_is_made_use_of() -> None:
    costs = costs_of([[(1.0, 0.2)]] * 8)
    half = {plan.selection: 0.5 for plan in plans(costs)}
    assert sum(choose(costs, Joint(costs, half), 0.4).plans[0].selection) == 4
    everything = {plan.selection: 0.1 for plan in plans(costs)}
    assert sum(choose(costs, Joint(costs, everything), 0.4).plans[0].selection) == 8


def test_drift_that_is_more_together_than_its_sum_is_seen() -> None:
    costs = costs_of([[(1.0, 0.05)]] * 8)
    thrice = {plan.selection: 3.0 for plan in plans(costs)}
    assert sum(choose(costs, Joint(costs, thrice), 0.5).plans[0].selection) == 3


def test_the_cheapest_rate_is_not_the_best_plan() -> None:
    """By saved time for its drift the first site comes first; the other one alone saves more and still fits."""
    costs = costs_of([[(8.0, 0.05)], [(1.0, 0.3)]])
    assert choose(costs, Joint(costs), 0.3).plans[0].selection == (0, 1)


def test_least_drift_within_a_latency_bound() -> None:
    costs = costs_of([[(5.0, 0.1), (1.0, 0.2)], [(5.0, 0.3)]])
    found = choose(costs, Joint(costs), 1.0, max_latency_ms=15.5)
    assert found.plans[0].selection == (1, 0)
    again = choose(costs, Joint(costs, {(1, 0): 9.0}), 1.0, max_latency_ms=15.5)
    assert again.plans[0].selection == (2, 0)


def test_the_original_within_the_latency_bound_needs_no_measurement() -> None:
    costs = costs_of([[(5.0, 0.0)]] * 3)
    joint = Joint(costs)
    assert choose(costs, joint, 1.0, max_latency_ms=30.0).plans == (costs.rate((0, 0, 0)),)
    assert joint.asked == []


def test_a_fast_plan_is_found_where_those_of_least_sum_all_break() -> None:
    """A dozen plans promise less drift and have too much; one that promises more keeps both bounds."""
    costs = costs_of([[(5.0, 0.001), (1.0, 0.2)]] * 4)
    broken = {plan.selection: INF for plan in plans(costs) if 1 in plan.selection}
    found = choose(costs, Joint(costs, broken), 0.9, max_latency_ms=25.0, measurements=4)
    assert found.plans
    assert 1 not in found.plans[0].selection


def test_no_plan_meets_both_bounds() -> None:
    costs = costs_of([[(5.0, 0.5)]])
    found = choose(costs, Joint(costs), 0.1, max_latency_ms=6.0)
    assert found.plans == ()
    assert costs.rate((0,)) in found.measured


def test_an_option_that_breaks_the_output_is_never_taken() -> None:
    costs = costs_of([[(1.0, INF)], []])
    joint = Joint(costs)
    assert choose(costs, joint, 10.0).plans == (costs.rate((0, 0)),)
    assert joint.asked == []


def test_a_bound_that_nothing_can_break() -> None:
    costs = costs_of([[(1.0, 0.5), (2.0, 0.1)]] * 3)
    assert choose(costs, Joint(costs), INF).plans[0].selection == (1, 1, 1)
    assert choose(costs, Joint(costs), 0.0).plans == (costs.rate((0, 0, 0)),)


@pytest.mark.parametrize("max_latency_ms", [None, 60.0])
def test_a_deep_model_takes_seconds(max_latency_ms: float | None) -> None:
    """24 blocks of the same latencies, as in a model: thousands of plans share each latency."""
    loss = [[0.0, 0.4 / (site + 1), 0.1 / (site + 1), 0.03 / (site + 1)] for site in range(24)]
    costs = Costs([[5.0, 1.0, 2.0, 3.0]] * 24, loss)
    start = time.perf_counter()
    found = choose(costs, lambda selection: 1.2 * costs.rate(selection).loss, 0.5, max_latency_ms)
    assert time.perf_counter() - start < 60
    assert found.plans[0].loss <= 0.5
