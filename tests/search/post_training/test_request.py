"""The options of a search: which values they refuse, and in which two ways they are given."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
from torch import nn

import jetvit
from jetvit.cost_model import Choice
from jetvit.patterns.errors import InputError
from jetvit.search import SearchRequest
from jetvit.search.post_training.request import request_of
from jetvit.search.tasks.features import Features
from jetvit.search.tasks.segmentation import Segmentation
from tests.search.tiny import CONV, WINDOW, noise, small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "the precision is 'fp16'"),
        ({"budget": 1.5}, "1.5 is no budget"),
        ({"budget": "0ms"}, "'0ms' is no budget"),
        ({"budget": "fast"}, "'fast' is no budget"),
        ({"budget": math.nan}, "nan is no budget"),
        ({"max_full": -1}, "max_full is -1"),
        ({"latency_batch": 0}, "latency_batch is 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        SearchRequest(**options)
    assert error.value.do
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SearchRequest(), **options)


def test_a_request_is_frozen_and_keeps_its_choices() -> None:
    request = SearchRequest(choices=iter([CONV, WINDOW]))  # type: ignore[arg-type]
    assert request.choices == (CONV, WINDOW)
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(("budget", "limit_ms"), [(None, None), (0.5, 10.0), ("0.25", 5.0), ("7ms", 7.0)])
def test_the_budget_is_a_share_or_a_time(budget: float | str | None, limit_ms: float | None) -> None:
    assert SearchRequest(budget=budget).limit_ms(20.0) == limit_ms


def test_a_task_without_labels_needs_a_bound() -> None:
    with pytest.raises(InputError, match="a search without labels needs a bound"):
        SearchRequest().refuse_task(Features())
    for bounded in (SearchRequest(max_full=0), SearchRequest(budget=0.5)):
        bounded.refuse_task(Features())
    SearchRequest().refuse_task(Segmentation(2))


def test_a_head_does_not_fit_a_model_with_its_own() -> None:
    request = SearchRequest(head=nn.Identity())
    request.refuse_task(Segmentation(2))
    with pytest.raises(InputError, match="a head was given"):
        request.refuse_task(Segmentation(2, taps=None))


def test_options_are_given_one_by_one_or_as_a_request() -> None:
    choices = [Choice("linear")]
    one_by_one = request_of(0.5, None, {"max_full": 2, "choices": choices, "seed": 3})
    assert one_by_one == SearchRequest(budget=0.5, max_full=2, choices=choices, seed=3)
    assert request_of(None, one_by_one, {}) is one_by_one
    assert request_of(None, None, {}) == SearchRequest()


@pytest.mark.parametrize(
    ("budget", "options", "given"),
    [(0.5, {}, "budget"), (None, {"seed": 0}, "seed"), ("5ms", {"seed": 1, "max_full": 2}, "budget, seed, max_full")],
)
def test_a_request_beside_keywords_is_refused(budget: float | str | None, options: dict[str, Any], given: str) -> None:
    with pytest.raises(InputError, match="options were given twice") as error:
        request_of(budget, SearchRequest(), options)
    assert error.value.why == f"there is a request, and {given} beside it"


@pytest.mark.parametrize(
    ("name", "nearest"), [("max_ful", "max_full"), ("choice", "choices"), ("batch", "latency_batch")]
)
def test_an_unknown_option_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"search() has no option {name!r}; the nearest is {nearest!r}")):
        jetvit.search(small(), noise("features"), Features(), **{name: 1})


def test_every_option_is_documented() -> None:
    for name in (field.name for field in dataclasses.fields(SearchRequest)):
        assert re.search(rf"^\s+{name}: ", SearchRequest.__doc__ or "", re.MULTILINE), name
        assert re.search(rf"\b{name}\b", jetvit.search.__doc__ or ""), name
