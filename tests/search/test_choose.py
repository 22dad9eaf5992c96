"""The choice against brute force, on problems small enough for it."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetvit.search.choose import Option, additive_front, choose, latency_of

FULL = Option(0.0, 10.0)
options = st.builds(Option, drift=st.floats(0, 2), latency_ms=st.floats(0.5, 20))
problems = st.lists(st.lists(options, max_size=3).map(lambda more: [FULL, *more]), min_size=1, max_size=4)


def additive(sites):
    return lambda selection: sum(site[number].drift for site, number in zip(sites, selection, strict=True))


@given(problems)
def test_the_front_falls_in_latency_and_starts_full(sites):
    front = additive_front(sites)
    assert front[0] == (0,) * len(sites)
    latencies = [latency_of(sites, selection) for selection in front]
    assert all(later < earlier for earlier, later in itertools.pairwise(latencies))
    assert latencies[-1] == pytest.approx(sum(min(option.latency_ms for option in site) for site in sites))


@given(problems, st.floats(0, 3))
def test_the_bound_holds_and_nothing_measured_beats_the_choice(sites, bound):
    best, measured = choose(sites, additive(sites), bound)
    assert best is not None
    assert best.drift <= bound
    assert best.latency_ms <= latency_of(sites, (0,) * len(sites))
    assert best.latency_ms == min(each.latency_ms for each in measured if each.drift <= bound)


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(1, 9)), min_size=1, max_size=4), st.floats(0, 2))
def test_close_to_the_optimum_with_one_option_a_site(pairs, bound):
    """Knapsack with one item a site: a greedy front misses at most the latency that one exchange saves."""
    sites = [[FULL, Option(drift, ms)] for drift, ms in pairs]
    best, _ = choose(sites, additive(sites), bound, exchanges=1000)
    every = itertools.product(range(2), repeat=len(sites))
    optimum = min(latency_of(sites, each) for each in every if additive(sites)(each) <= bound)
    assert best.latency_ms <= optimum + max(10 - ms for _, ms in pairs) + 1e-9


def test_joint_drift_decides_and_not_the_sum():
    """Two choices that are harmless alone and ruinous together are not taken together."""
    sites = [[FULL, Option(0.01, 1.0)], [FULL, Option(0.02, 1.0)]]
    best, _ = choose(sites, lambda selection: 5.0 if sum(selection) == 2 else 0.01 * sum(selection), 0.3)
    assert sum(best.selection) == 1


def test_an_exchange_is_found():
    """The front offers the cheap site first; the other one alone saves more and still fits."""
    sites = [[FULL, Option(0.05, 8.0)], [FULL, Option(0.3, 1.0)]]
    best, _ = choose(sites, additive(sites), 0.3)
    assert best.selection == (0, 1)


def test_least_drift_within_a_latency_bound():
    sites = [[FULL, Option(0.1, 5.0), Option(0.2, 1.0)], [FULL, Option(0.3, 5.0)]]
    best, _ = choose(sites, additive(sites), 1.0, max_latency_ms=15.5)
    assert best.selection == (1, 0)


def test_no_plan_meets_both_bounds():
    sites = [[FULL, Option(0.5, 5.0)]]
    best, measured = choose(sites, additive(sites), 0.1, max_latency_ms=6.0)
    assert best is None
    assert any(each.selection == (0,) for each in measured)


def test_an_option_that_breaks_the_output_is_never_taken():
    best, _ = choose([[FULL, Option(math.inf, 1.0)]], lambda selection: math.inf, 10.0)
    assert best.selection == (0,)
