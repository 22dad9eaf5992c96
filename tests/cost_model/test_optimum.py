"""The chosen plan is the best one: integer programming, shortest paths and brute force agree."""

from __future__ import annotations

import itertools
import math
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jetvit.cost_model.optimum import Costs, Rated, confirmed, fastest, front, least_loss
from jetvit.cost_model.paths import front_by_paths, layered_graph

INF = math.inf
# Small whole numbers make ties, which is where a wrong comparison shows.
numbers = st.integers(0, 6).map(float) | st.floats(0, 10).map(lambda x: round(x, 3))
corrections = st.integers(-3, 3).map(float) | st.floats(-2, 2).map(lambda x: round(x, 3))


@st.composite
def costs(draw: st.DrawFn, neighbours_only: bool = False, sites: int = 5) -> Costs:
    sizes = draw(st.lists(st.integers(1, 3), max_size=sites))
    latency = [[draw(numbers) for _ in range(size)] for size in sizes]
    loss = [[draw(numbers | st.just(INF)) for _ in range(size)] for size in sizes]
    picks = [(site, option) for site, size in enumerate(sizes) for option in range(size)]
    pairs = [
        pair
        for pair in itertools.combinations(picks, 2)
        if pair[0][0] != pair[1][0] and (not neighbours_only or abs(pair[0][0] - pair[1][0]) == 1)
    ]
    some = st.dictionaries(st.sampled_from(pairs), corrections, max_size=5) if pairs else st.just({})
    turned = {(two, one) if draw(st.booleans()) else (one, two): value for (one, two), value in draw(some).items()}
    return Costs(latency, loss, turned, draw(some), draw(numbers))


def plans(problem: Costs) -> list[Rated]:
    """Every plan there is."""
    choices = itertools.product(*(range(len(options)) for options in problem.loss))
    return [plan for plan in map(problem.rate, choices) if plan.loss < INF]


def front_of(every: list[Rated]) -> list[tuple[float, float]]:
    kept: list[tuple[float, float]] = []
    for point in sorted({(plan.latency_ms, plan.loss) for plan in every}):
        if not kept or point[1] < kept[-1][1] - 1e-6:
            kept.append(point)
    return kept[::-1]


def points(found: list[Rated]) -> list[tuple[float, float]]:
    return [(plan.latency_ms, plan.loss) for plan in found]


def near(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


@settings(max_examples=60)
@given(costs(), st.integers(0, 100), st.integers(1, 4))
def test_brute_force_finds_nothing_better(problem: Costs, place: int, count: int) -> None:
    """The bound is a latency that a plan has to the bit, or none at all has."""
    every = plans(problem)
    assume(every)
    bound = every[place % len(every)].latency_ms - (place % 3 == 0) * 1e-3
    within = sorted((plan.loss, plan.latency_ms) for plan in every if plan.latency_ms <= bound)
    found = least_loss(problem, bound, count)
    assert all(plan == problem.rate(plan.selection) and plan.latency_ms <= bound for plan in found)
    assert len({plan.selection for plan in found}) == len(found) == min(count, len(within))
    near([(plan.loss, plan.latency_ms) for plan in found], within[:count])


@settings(max_examples=60)
@given(costs(), st.integers(0, 100), st.integers(1, 4), st.integers(0, 5))
def test_at_most_so_many_first_options(problem: Costs, place: int, count: int, most_first: int) -> None:
    every = plans(problem)
    assume(problem.loss and every)
    bound = every[place % len(every)].latency_ms
    within = [plan for plan in every if plan.latency_ms <= bound and plan.selection.count(0) <= most_first]
    found = least_loss(problem, bound, count, most_first=most_first)
    assert all(plan.selection.count(0) <= most_first and plan.latency_ms <= bound for plan in found)
    assert len({plan.selection for plan in found}) == len(found) == min(count, len(within))
    near([(plan.loss, plan.latency_ms) for plan in found], sorted((p.loss, p.latency_ms) for p in within)[:count])


@settings(max_examples=60)
@given(costs(), st.integers(0, 100))
def test_the_fastest_within_a_loss(problem: Costs, place: int) -> None:
    every = plans(problem)
    assume(every)
    bound = every[place % len(every)].loss
    (found,) = fastest(problem, bound)
    assert found.loss <= bound
    best = min((plan.latency_ms, plan.loss) for plan in every if plan.loss <= bound)
    assert (found.latency_ms, found.loss) == pytest.approx(best, abs=1e-6)


@settings(max_examples=40)
@given(costs())
def test_the_front_is_all_that_nothing_beats(problem: Costs) -> None:
    near(points(front(problem)), front_of(plans(problem)))


@settings(max_examples=40)
@given(costs(neighbours_only=True, sites=6))
def test_integer_programming_and_shortest_paths_agree(problem: Costs) -> None:
    by_paths = front_by_paths(problem)
    near(points(by_paths), front_of(plans(problem)))
    near(points(front(problem)), points(by_paths))


def test_every_path_is_a_plan() -> None:
    problem = Costs([[1, 2], [3, 4], [5, 6]], [[0, 1], [0, INF], [0, 1]], fixed_ms=0.5)
    graph = layered_graph(problem)
    assert set(graph) == {"source", (0, 0), (0, 1), (1, 0), (2, 0), (2, 1), "sink"}
    assert graph.number_of_edges() == 2 + 2 + 2 + 2


def test_no_edge_holds_a_pair_of_distant_sites() -> None:
    problem = Costs([[1.0]] * 3, [[0.0]] * 3, loss_pairs={((0, 0), (2, 0)): 1.0})
    with pytest.raises(ValueError, match=r"\(0, 0\) and \(2, 0\) are of sites that are no neighbours"):
        front_by_paths(problem)


def test_equal_blocks_are_no_trouble() -> None:
    """24 blocks of the same latencies: thousands of plans share each latency, and the front has one of each."""
    options = [5.0, 2.0, 1.0]
    loss = [[0.0, 0.1 + 0.01 * site, 0.15 + 0.02 * site] for site in range(24)]
    problem = Costs([options] * 24, loss)
    start = time.perf_counter()
    found = front(problem)
    assert time.perf_counter() - start < 60
    near(points(found), points(front_by_paths(problem)))
    assert found[0].selection == (0,) * 24
    assert found[-1].selection == (2,) * 24


def test_nothing_to_choose() -> None:
    problem = Costs([], [], fixed_ms=1.5)
    assert front(problem) == front_by_paths(problem) == [Rated((), 1.5, 0.0)]
    assert least_loss(problem, 1.0) == []
    assert least_loss(problem, 2.0, count=3) == [Rated((), 1.5, 0.0)]


def test_a_site_that_can_take_nothing_leaves_no_plan() -> None:
    problem = Costs([[1.0], [1.0]], [[0.0], [INF]])
    assert front(problem) == front_by_paths(problem) == fastest(problem, 5.0) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0]], [[1.0, 2.0]]), "different numbers of sites or options"),
        (([[]], [[]]), "a site has no options"),
        (([[INF]], [[0.0]]), "a latency or a correction is not finite"),
        (([[1.0]], [[math.nan]]), "a loss is NaN"),
        (([[1.0]], [[0.0]], {((0, 0), (0, 0)): 1.0}), "are of one site"),
        (([[1.0]] * 2, [[0.0]] * 2, {((0, 0), (1, 1)): 1.0}), "there is no option 1 of site 1"),
        (([[1.0]] * 2, [[0.0]] * 2, {}, {((0, 0), (1, 0)): INF}), "a latency or a correction is not finite"),
    ],
)
def test_costs_that_mean_nothing_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Costs(*arguments)


def test_a_measured_latency_overrules_the_model() -> None:
    problem = Costs([[3.0, 1.0], [3.0, 2.0]], [[0.0, 1.0], [0.0, 1.5]])
    best = least_loss(problem, 5.0, count=2)
    assert [plan.selection for plan in best] == [(1, 0), (0, 1)]
    truth = {(1, 0): 5.5, (0, 1): 4.9}
    assert confirmed(best, truth.__getitem__, 5.0) == Rated((0, 1), 4.9, 1.5)
    assert confirmed(best, truth.__getitem__) == Rated((0, 1), 4.9, 1.5)
    assert confirmed(best, truth.__getitem__, 4.0) is None
    assert confirmed([], truth.__getitem__) is None
