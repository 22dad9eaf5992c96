"""Scores of single choices, and what they add up to."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.cost_model import Choice
from jetvit.passes.frontends.capture import export_model
from jetvit.search.calibration.model_latency import FromTable
from jetvit.search.data.processes import Processes
from jetvit.search.data.stream import Stream
from jetvit.search.post_training.feature_extractor import relative_error
from jetvit.search.post_training.scores import PathLatency, ScoredChoice, score_alone, survivors
from jetvit.search.post_training.supernet import FULL
from jetvit.search.post_training.train import Run
from tests.jetvit.costs import made_up_costs
from tests.search.tiny import CONV, LINEAR, SIZE, WINDOW, Noise, disturb, extractors, small

CHOICES = (LINEAR, CONV, WINDOW, Choice("window", window=(3, 3)))
Table = dict[str, dict[Choice, float]]
numbers = st.integers(0, 6).map(float)
tables = st.fixed_dictionaries(
    {name: st.fixed_dictionaries(dict.fromkeys((FULL, *CHOICES), numbers)) for name in "abc"}
)
ALTERNATIVES = {name: CHOICES[: 2 + number] for number, name in enumerate("abc")}


@given(tables, st.floats(0.1, 2), st.data())
def test_a_path_takes_what_its_attentions_save(table: Table, share: float, data: st.DataObject):
    latency = PathLatency(table, share, 100.0)
    assert latency({}) == latency(dict.fromkeys(table, FULL)) == 100
    path = {name: data.draw(st.sampled_from((FULL, *CHOICES))) for name in table}
    expected = 100 + share * sum(table[name][choice] - table[name][FULL] for name, choice in path.items())
    assert latency(path) == pytest.approx(expected)
    named = {name: choice for name, choice in path.items() if choice != FULL}
    assert latency(named) == pytest.approx(latency(path))
    again = PathLatency.from_json(json.loads(json.dumps(latency.to_json())))
    assert again == latency
    assert again(path) == latency(path)


def test_latencies_of_a_table():
    program = export_model(small(), (torch.zeros(2, 3, *SIZE),), {})
    names = ("blocks.0.attn", "blocks.1.attn")
    found = PathLatency.of(FromTable(made_up_costs(), program), dict.fromkeys(names, (LINEAR, WINDOW)))
    assert found.attention_ms == {name: {FULL: 12.34, LINEAR: 1.5, WINDOW: 2.0} for name in names}
    assert found({}) - found({names[0]: WINDOW}) == pytest.approx(found.share * 10.34)
    assert found.full_ms > 2 * 12.34


def test_each_choice_is_scored_alone():
    net, extractor, teacher = extractors(2)
    disturb(net)
    alternatives = {"blocks.0.attn": (CONV, WINDOW), "blocks.1.attn": (LINEAR,)}
    told: list[tuple[str, int, int]] = []
    stream = Stream(Noise(4, 1), 2, "a", Processes())
    with net.path({"blocks.1.attn": WINDOW}):  # whatever the active path
        run = Run(progress=lambda *what: told.append(what))
        scores = score_alone(net, extractor, teacher, alternatives, stream, 2, run)
    assert {name: set(some) for name, some in scores.items()} == {
        "blocks.0.attn": {FULL, CONV, WINDOW},
        "blocks.1.attn": {FULL, LINEAR},
    }
    for name, some in scores.items():
        for choice, score in some.items():
            errors = []
            for step in range(2):
                images, _ = stream(step)
                with torch.no_grad(), net.path({name: choice}):
                    errors.append(float(relative_error(extractor.tokens(images), teacher.tokens(images)).mean()))
            assert score == pytest.approx(sum(errors) / 2, rel=1e-5)
            assert (score == 0) == (choice == FULL)
    assert told == [("scoring choices", number, 6) for number in range(1, 7)]


@given(tables, tables, st.integers(1, 5))
def test_who_survives(scores: Table, table: Table, most: int):
    latency = PathLatency(table, 1.0, 100.0)
    for name, kept in survivors(scores, latency, most).items():
        assert FULL not in kept
        assert [scores[name][each] for each in kept] == sorted(scores[name][each] for each in kept)
        for kind in ("linear", "window"):
            every = {(scores[name][each], table[name][each]) for each in CHOICES if each.kind == kind}
            front = {(x, y) for x, y in every if not any((u, v) != (x, y) and u <= x and v <= y for u, v in every)}
            points = [(scores[name][each], table[name][each]) for each in kept if each.kind == kind]
            assert set(points) <= front
            assert len(points) == len(set(points)) == min(most, len(front))
            assert min(y for _, y in points) == min(y for _, y in every)
            assert most == 1 or min(points) == min(front)


@settings(max_examples=25)
@given(tables, tables, st.integers(0, 3) | st.none(), st.integers(80, 110), st.integers(1, 4))
def test_the_best_paths_are_those_of_brute_force(
    scores: Table,
    table: Table,
    max_full: int | None,
    limit: int,
    count: int,
):
    scores = {name: some | {FULL: 0.0} for name, some in scores.items()}
    latency = PathLatency(table, 1.0, 100.0)
    scored = ScoredChoice.of(scores, ALTERNATIVES, latency)
    paths = [
        dict(zip("abc", some, strict=True))
        for some in itertools.product(*((FULL, *ALTERNATIVES[name]) for name in "abc"))
    ]
    fitting = sorted(
        (scored.error(path), latency(path))
        for path in paths
        if latency(path) <= limit + 1e-9 and (max_full is None or sum(c == FULL for c in path.values()) <= max_full)
    )
    found = scored.best(limit + 1e-9, count, max_full)
    assert all(scored.error(path) == math.fsum(scores[name][choice] for name, choice in path.items()) for path in found)
    assert [(scored.error(path), pytest.approx(latency(path))) for path in found] == fitting[:count]
