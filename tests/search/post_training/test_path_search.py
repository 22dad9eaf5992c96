"""The search for a path, on metrics that are sums: what is chosen is the best that may be."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path as File

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.cost_model import Choice
from jetvit.patterns.errors import PlanError
from jetvit.search.calibration.run_folder import RunFolder
from jetvit.search.post_training.path_search import Evaluations, PathSearch
from jetvit.search.post_training.paths import path_key
from jetvit.search.post_training.recipe import Recipe
from jetvit.search.post_training.scores import PathLatency
from jetvit.search.post_training.supernet import FULL, Path

LINEAR, WINDOW = Choice("linear"), Choice("window", window=(2, 2))
NAMES = tuple("abcd")
ALTERNATIVES = dict.fromkeys(NAMES, (LINEAR, WINDOW))
# In the order of full, window and linear: dearer is better, at each site by a different amount.
MS = {FULL: 5.0, WINDOW: 2.0, LINEAR: 1.0}
Harm = Mapping[str, Mapping[Choice, float]]
LATENCY = PathLatency(dict.fromkeys(NAMES, MS), 1.0, 30.0)
harms = st.fixed_dictionaries(
    {
        name: st.tuples(st.integers(0, 6), st.integers(0, 6)).map(
            lambda pair: {FULL: 0.0, WINDOW: pair[0] / 8, LINEAR: sum(pair) / 8}
        )
        for name in NAMES
    }
)
UNEVEN = {name: {FULL: 0.0, WINDOW: (1 + n) / 8, LINEAR: (2 + 3 * n) / 8} for n, name in enumerate(NAMES)}


def value(harm: Harm, path: Path) -> float:
    return 10 - math.fsum(harm[name][choice] for name, choice in path.items())


def search(harm: Harm, limit: float = math.inf, max_full: int | None = None, **options: object) -> PathSearch:
    recipe = Recipe(**{"width": 3, "candidates": 6, **options})  # type: ignore[arg-type]
    return PathSearch(
        ALTERNATIVES, harm, LATENCY, lambda path: value(harm, path), recipe, limit_ms=limit, max_full=max_full, seed=0
    )


def every_path(limit: float, max_full: int | None) -> list[Path]:
    some = (dict(zip(NAMES, each, strict=True)) for each in itertools.product((FULL, WINDOW, LINEAR), repeat=4))
    return [
        path
        for path in some
        if LATENCY(path) <= limit and (max_full is None or sum(c == FULL for c in path.values()) <= max_full)
    ]


@settings(max_examples=30)
@given(harms, st.integers(14, 30).map(float), st.integers(0, 4) | st.none())
def test_what_is_chosen_is_the_best_within_the_bounds(harm: Harm, limit: float, max_full: int | None):
    paths = every_path(limit, max_full)
    found = search(harm, limit, max_full)()
    assert found.best.path in paths
    assert found.best.value == max(value(harm, path) for path in paths)
    assert (found.full.value, found.full.latency_ms) == (10, 30)
    for rated in (*found.listed, *(each for level in found.levels for each in level.beam)):
        assert rated.path in paths
        assert rated.value == value(harm, rated.path)
        assert rated.latency_ms == LATENCY(rated.path)


@settings(max_examples=30)
@given(harms, st.integers(14, 30).map(float) | st.just(math.inf), st.integers(0, 4) | st.none())
def test_nothing_that_was_rated_beats_the_chosen_path(harm: Harm, limit: float, max_full: int | None):
    found = search(harm, limit, max_full)()
    allowed = [path_key(path) for path in every_path(limit, max_full)]
    rated = (*found.listed, *(each for level in found.levels for each in level.beam), *found.controls.values())
    for each in rated:
        if path_key(each.path) in allowed and each.latency_ms <= found.best.latency_ms:
            assert each.value <= found.best.value


def test_a_control_that_wins_is_taken():
    """The metric likes one path that no score speaks for, and that only the random control comes upon."""
    plain = search(UNEVEN, 24.0)()
    lucky = plain.controls["random"].path
    assert lucky != plain.best.path
    again = search(UNEVEN, 24.0)
    again.evaluate = lambda path: 11.0 if path == lucky else value(UNEVEN, path)
    again.beam = replace(again.beam, evaluate=lambda path: value(UNEVEN, path))
    found = again()
    assert found.best.path == lucky
    assert found.best.value == 11.0
    assert found.controls["random"].path == lucky


def test_without_bounds_the_fastest_as_good_as_the_original():
    harmless = {name: some | ({} if name == "c" else {WINDOW: 0.0}) for name, some in UNEVEN.items()}
    harmless["a"] = dict.fromkeys(MS, 0.0)
    found = search(harmless)()
    assert found.best.path == {"a": LINEAR, "b": WINDOW, "c": FULL, "d": WINDOW}
    assert found.best.value == found.full.value


def test_no_path_keeps_the_budget():
    with pytest.raises(PlanError, match="no plan keeps the budget") as error:
        search(UNEVEN, 13.9)()
    assert error.value.why == "the fastest takes about 14 ms, and 13.9 ms are allowed; the full model takes 30 ms"
    assert search(UNEVEN, 14.0)().best.path == dict.fromkeys(NAMES, LINEAR)


def test_the_two_climbs_of_the_paper():
    found = search(UNEVEN, max_full=2)()
    phases = [level.phase for level in found.levels]
    assert phases == sorted(phases, key=("efficient", "full", "listed").index)
    by_phase = {phase: [level for level in found.levels if level.phase == phase] for phase in dict.fromkeys(phases)}
    start = by_phase["efficient"][0].beam[0].path
    assert start == dict.fromkeys(NAMES, LINEAR)
    assert all(FULL not in rated.path.values() for level in by_phase["efficient"] for rated in level.beam)
    assert by_phase["efficient"][-1].beam[0].path == dict.fromkeys(NAMES, WINDOW)
    assert [level.beam[0].full for level in by_phase["full"]] == [0, 1, 2]
    assert found.best.path == {"a": WINDOW, "b": WINDOW, "c": FULL, "d": FULL}


def test_controls():
    found = search(UNEVEN, max_full=2)()
    assert set(found.controls) == {"all linear relu", "all window 2x2", "evenly spaced full", "random"}
    assert found.controls["all window 2x2"].path == dict.fromkeys(NAMES, WINDOW)
    assert found.controls["evenly spaced full"].path == {"a": WINDOW, "b": FULL, "c": LINEAR, "d": FULL}
    random = found.controls["random"]
    assert random.full == found.best.full == 2
    assert random.latency_ms == found.best.latency_ms
    assert search(UNEVEN, max_full=2)().controls == found.controls


def test_the_trace_is_json():
    found = search(UNEVEN, max_full=1)()
    record = json.loads(json.dumps(found.to_json()))
    assert record["best"] == found.best.to_json()
    assert len(record["beam"]) == len(found.levels)
    assert len(record["listed"]) == len(found.listed)


def test_each_path_is_measured_once_and_kept(tmp_path: File):
    measured: list[Path] = []

    def measure(path: Path) -> float:
        measured.append(path)
        return value(UNEVEN, path)

    evaluations = Evaluations(measure, RunFolder(tmp_path, {}), "supernet")
    paths: list[Path] = [{"a": LINEAR}, {"a": LINEAR, "b": FULL}, {"b": LINEAR}]
    values = [evaluations(path) for path in paths]
    assert measured == [paths[0], paths[2]]
    again = Evaluations(measure, RunFolder(tmp_path, {}), "supernet")
    assert [again(path) for path in paths] == values
    assert len(measured) == 2
    other = Evaluations(measure, RunFolder(tmp_path, {}), "another stage")
    assert path_key(paths[0]) not in other.values
    other(paths[0])
    assert len(measured) == 3
    assert Evaluations(measure, None, "supernet").values == {}
