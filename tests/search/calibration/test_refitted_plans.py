"""The search by drifts after a refit finds the fastest plan that keeps the bound, with few refits."""

import math

from hypothesis import given
from hypothesis import strategies as st

from jetvit.cost_model.optimum import Costs, Selection
from jetvit.search.calibration.refitted_plans import refitted_plans


def costs(losses: list[float]) -> Costs:
    return Costs([[10.0, 4.0]] * len(losses), [[0.0, loss] for loss in losses])


LOSSES = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6)


@given(LOSSES, st.floats(0.1, 1.0), st.floats(0.01, 3.0))
def test_a_plan_that_is_returned_keeps_the_bound(losses: list[float], repaired: float, bound: float) -> None:
    table, asked = costs(losses), list[Selection]()

    def drift(selection: Selection) -> float:
        return sum(loss for loss, number in zip(losses, selection, strict=True) if number)

    def refitted(selection: Selection) -> float:
        asked.append(selection)
        return repaired * drift(selection)

    found = refitted_plans(table, drift, refitted, bound)
    assert len(asked) == len(set(asked)) <= 4
    for plan in found.plans:
        assert math.isclose(plan.loss, repaired * drift(plan.selection))
        assert plan.loss <= bound
    assert [plan.latency_ms for plan in found.plans] == sorted(plan.latency_ms for plan in found.plans)
    assert len(found.measured) == 1 + len(asked)


def test_a_refit_that_repairs_much_lets_more_be_converted() -> None:
    table = costs([0.1] * 8)

    def cheap(selection: Selection) -> float:
        return 0.1 * sum(selection)

    plain = refitted_plans(table, cheap, cheap, 0.2)
    assert sum(plain.plans[0].selection) == 2
    halved = refitted_plans(table, cheap, lambda selection: cheap(selection) / 3, 0.2)
    assert sum(halved.plans[0].selection) >= 5


def test_where_a_refit_makes_it_worse_the_bound_still_holds() -> None:
    table = costs([0.1] * 8)
    found = refitted_plans(table, lambda s: 0.1 * sum(s), lambda s: 0.2 * sum(s), 0.25)
    assert found.plans[0].loss <= 0.25


def test_nothing_keeps_a_bound_of_zero() -> None:
    found = refitted_plans(costs([0.5, 0.5]), lambda s: 0.5 * sum(s), lambda s: 0.5 * sum(s), 0.0)
    assert found.plans[0].selection == (0, 0)


def test_a_budget_asks_for_the_least_drift() -> None:
    table = costs([0.5, 0.1, 0.3])

    def drift(selection: Selection) -> float:
        return sum(loss for loss, number in zip([0.5, 0.1, 0.3], selection, strict=True) if number)

    found = refitted_plans(table, drift, drift, 1.0, max_latency_ms=18.0)
    assert found.plans[0].selection == (0, 1, 1)
    assert not refitted_plans(table, drift, drift, 0.2, max_latency_ms=12.0).plans
