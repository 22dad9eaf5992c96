"""Beam search: exhaustive where it is wide enough, and within its bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from jetvit.cost_model import Choice
from jetvit.search.post_training.beam import BeamSearch, Rated, best_of
from jetvit.search.post_training.paths import path_key
from jetvit.search.post_training.supernet import FULL, Path

LINEAR, WINDOW = Choice("linear"), Choice("window", window=(2, 2))
START = dict.fromkeys("abcd", LINEAR)
MOVES = {name: [WINDOW, FULL] for name in "abcd"}
Table = Mapping[str, Mapping[Choice, float]]
numbers = st.integers(0, 8).map(float)
gains = st.fixed_dictionaries(
    {name: st.fixed_dictionaries(dict.fromkeys((LINEAR, WINDOW, FULL), numbers)) for name in "abcd"}
)
# What a move costs beside linear attention: never less than nothing, as up the ladder.
times = st.fixed_dictionaries(
    {name: st.fixed_dictionaries({LINEAR: st.just(0.0), WINDOW: numbers, FULL: numbers}) for name in "abcd"}
)


def total(table: Table) -> object:
    return lambda path: math.fsum(table[name][choice] for name, choice in path.items())


def search(gain: Table, time: Table, limit: float = math.inf, **options: object) -> BeamSearch:
    return BeamSearch(total(gain), total(time), limit, **options)  # type: ignore[arg-type]


def every_path() -> list[dict[str, Choice]]:
    return [dict(zip("abcd", some, strict=True)) for some in itertools.product((LINEAR, WINDOW, FULL), repeat=4)]


@given(gains, times, st.integers(0, 16).map(float))
def test_a_beam_as_wide_as_all_paths_finds_the_best(gain: Table, time: Table, limit: float):
    found = best_of(search(gain, time, limit, width=81).climb("up", [START], MOVES, until_no_better=False))
    assert found is not None
    quality, latency = total(gain), total(time)
    best = max((quality(path), -latency(path)) for path in every_path() if latency(path) <= limit)  # type: ignore[operator]
    assert (found.value, -found.latency_ms) == best
    assert found.value == quality(found.path)  # type: ignore[operator]


@given(gains, st.integers(1, 4))
def test_without_a_budget_one_path_is_wide_enough_for_a_sum(gain: Table, width: int):
    """Each step takes the largest gain that is left, and stops where there is none."""
    levels = search(gain, gain, width=width).climb("up", [START], MOVES)
    found = best_of(levels)
    assert found is not None
    assert found.value == sum(max(some.values()) for some in gain.values())


@given(gains, times, st.integers(0, 16).map(float), st.integers(1, 4), st.integers(0, 4), st.booleans())
def test_the_bounds_are_kept(gain: Table, time: Table, limit: float, width: int, most: int, until: bool):
    told: list[str] = []
    latency = total(time)

    def evaluate(path: Path) -> float:
        assert latency(path) <= limit, "a path beyond the budget was measured"  # type: ignore[operator]
        told.append(path_key(path))
        return total(gain)(path)  # type: ignore[operator]

    beam = BeamSearch(evaluate, latency, limit, width)  # type: ignore[arg-type]
    levels = beam.climb("up", [START], MOVES, most=most, until_no_better=until)
    assert [level.changed for level in levels] == list(range(len(levels)))
    assert levels[-1].changed <= most
    for level in levels:
        assert level.phase == "up"
        assert 1 <= len(level.beam) <= width
        assert [rated.value for rated in level.beam] == sorted((rated.value for rated in level.beam), reverse=True)
        for rated in level.beam:
            assert sum(rated.path[name] != LINEAR for name in "abcd") == level.changed
            assert rated.latency_ms <= limit
    assert len(told) == len(set(told)), "a path was measured twice"
    if until:  # every level but the last one is better than all before it
        firsts = [level.beam[0].value for level in levels]
        assert all(value > max(firsts[:place]) for place, value in enumerate(firsts[1:-1], 1))


@given(gains, st.integers(0, 30).map(float))
def test_a_goal_is_enough(gain: Table, goal: float):
    levels = search(gain, gain).climb("up", [START], MOVES, goal=goal, until_no_better=False)
    reached = [level.beam[0].value >= goal for level in levels]
    assert not any(reached[:-1])
    assert reached[-1] or levels[-1].changed == 4


def test_a_start_beyond_the_budget_leaves_nothing():
    ones = {name: dict.fromkeys((LINEAR, WINDOW, FULL), 1.0) for name in "abcd"}
    assert search(ones, ones, 3.9).climb("up", [START], MOVES) == []
    assert best_of([]) is None
    (level,) = search(ones, ones, 4.0).climb("up", [START, dict.fromkeys("abcd", FULL)], {}, until_no_better=False)
    assert len(level.beam) == 2


def test_only_the_most_promising_are_measured():
    gain = {name: {LINEAR: 0.0, WINDOW: 1.0, FULL: 2.0} for name in "abcd"}
    measured: list[Path] = []

    def evaluate(path: Path) -> float:
        measured.append(path)
        return total(gain)(path)  # type: ignore[operator]

    beam = BeamSearch(evaluate, total(gain), width=1, expand=2, promise=lambda path: path["d"] == FULL)  # type: ignore[arg-type]
    levels = beam.climb("up", [START], MOVES, most=1)
    assert len(measured) == 3  # the start, and two of eight
    assert levels[1].beam[0].path == {**START, "d": FULL}


def test_of_equals_the_fastest():
    level = search(
        {name: {LINEAR: 0.0, WINDOW: 1.0, FULL: 1.0} for name in "abcd"},
        {name: {LINEAR: 0.0, WINDOW: 1.0, FULL: 2.0} for name in "abcd"},
    ).climb("up", [START], MOVES, most=1)
    found = best_of(level)
    assert found is not None
    assert (found.latency_ms, found.full) == (1.0, 0)
    assert Rated({"a": FULL, "b": LINEAR}, 0.5, 2.0).to_json() == {
        "path": {"a": "full", "b": LINEAR.label},
        "value": 0.5,
        "latency_ms": 2.0,
    }
