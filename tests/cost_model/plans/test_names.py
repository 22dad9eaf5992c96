from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jetvit.cost_model import match_names
from jetvit.patterns.errors import PlanError
from tests.cost_model.strategies import names

BLOCKS = [f"blocks.{i}.attn" for i in range(12)]
prefixes = st.from_regex(r"[a-z]{1,6}(\.[a-z]{1,6})?", fullmatch=True)
counts = st.integers(2, 15)


def blocks(count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}blocks.{i}.attn" for i in range(count)]


@given(st.lists(names, unique=True, max_size=6), st.lists(names, unique=True, max_size=6))
def test_equal_names_match_whatever_else_the_model_has(planned: list[str], more: list[str]):
    model = list(dict.fromkeys(planned + more))
    match = match_names(planned, model)
    assert match.mapping == {name: name for name in planned}
    assert (match.added, match.removed, match.absent) == ("", "", ())
    assert match.unplanned == tuple(name for name in model if name not in planned)


@given(prefixes, counts)
def test_one_prefix_more_is_added_to_names_and_weights(prefix: str, count: int):
    match = match_names(blocks(count), blocks(count, prefix + "."))
    assert match.mapping == {name: f"{prefix}.{name}" for name in blocks(count)}
    assert (match.added, match.removed) == (prefix, "")
    assert match.rename("blocks.0.attn.qkv.weight") == f"{prefix}.blocks.0.attn.qkv.weight"


@given(prefixes, counts)
def test_one_prefix_less_is_the_inverse(prefix: str, count: int):
    there = match_names(blocks(count), blocks(count, prefix + "."))
    back = match_names(blocks(count, prefix + "."), blocks(count))
    assert (back.added, back.removed) == ("", prefix)
    assert {new: old for old, new in there.mapping.items()} == back.mapping
    assert back.rename(there.rename("norm.weight")) == "norm.weight"


def test_a_weight_outside_of_the_removed_prefix_is_refused():
    match = match_names(blocks(2, "model."), blocks(2))
    with pytest.raises(PlanError, match=r"head\.weight has no name in this model"):
        match.rename("head.weight")
    with pytest.raises(PlanError):
        match.rename("modelling.weight")


def test_a_prefix_is_made_of_whole_names():
    with pytest.raises(PlanError):
        match_names(["attn"], ["my_attn"])


@given(counts, prefixes, prefixes)
def test_two_prefixes_are_ambiguous(count: int, one: str, other: str):
    assume(one != other)
    with pytest.raises(PlanError) as error:
        match_names(blocks(count), blocks(count, one + ".") + blocks(count, other + "."))
    assert "more than one part" in error.value.what
    assert f"prefixes {one}, {other}" in error.value.why
    assert "one part" in error.value.do
    assert error.value.where == "site blocks.0.attn of the plan"


def test_equal_names_win_over_a_prefix():
    match = match_names(blocks(2), blocks(2, "teacher.") + blocks(2))
    assert match.mapping == {name: name for name in blocks(2)}
    assert match.unplanned == tuple(blocks(2, "teacher."))


def test_a_prefix_that_fits_only_some_sites_is_no_rival():
    match = match_names(blocks(3), [*blocks(3, "backbone."), "head.blocks.0.attn"])
    assert match.added == "backbone"
    assert match.unplanned == ("head.blocks.0.attn",)


def test_an_absent_site_is_named():
    with pytest.raises(PlanError) as error:
        match_names(blocks(4), blocks(2))
    assert error.value.where == "site blocks.2.attn of the plan"
    assert "2 of the plan's 4 sites" in error.value.why
    assert "blocks.0.attn, blocks.1.attn" in error.value.why
    assert "calibrate" in error.value.do


def test_a_model_without_sites_is_named():
    with pytest.raises(PlanError, match="the model lacks the only site of the plan; the model's sites are none"):
        match_names(blocks(1), [])


def test_a_piece_of_a_model_holds_part_of_a_plan():
    match = match_names(blocks(4), ["m.blocks.1.attn", "m.blocks.3.attn", "m.pool"], partial=True)
    assert match.mapping == {"blocks.1.attn": "m.blocks.1.attn", "blocks.3.attn": "m.blocks.3.attn"}
    assert match.absent == ("blocks.0.attn", "blocks.2.attn")
    assert match.unplanned == ("m.pool",)


@pytest.mark.parametrize("there", [[], ["pool"]])
def test_a_piece_of_a_model_may_hold_nothing_of_a_plan(there: list[str]):
    match = match_names(blocks(2), there, partial=True)
    assert (match.mapping, match.absent, match.unplanned) == ({}, tuple(blocks(2)), tuple(there))


def test_two_prefixes_with_a_part_each_are_ambiguous():
    with pytest.raises(PlanError, match="more than one part"):
        match_names(blocks(2), ["a.blocks.0.attn", "b.blocks.1.attn"], partial=True)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("there", [["attn"], ["attn", "attn#1"]])
def test_regional_compilation_is_refused_with_advice(there: list[str], partial: bool):
    planned = [f"blocks.{i}.{name}" for i in range(5) for name in there]
    with pytest.raises(PlanError) as error:
        match_names(planned, there, partial=partial)
    assert "one block of the model" in error.value.what
    assert "blocks.0.attn, blocks.1.attn, blocks.2.attn and 2 more" in error.value.why
    assert error.value.do == "compile the whole model, not its blocks one by one"


def test_a_block_whose_name_has_an_index_is_ambiguous_but_not_regional():
    planned = ["stages.0.blocks.0.attn", "stages.1.blocks.0.attn"]
    with pytest.raises(PlanError, match="more than one part"):
        match_names(planned, ["blocks.0.attn"], partial=True)


def test_a_name_without_index_at_the_root_of_a_whole_model_is_no_block():
    match = match_names(blocks(3), ["attn", *blocks(3)], partial=True)
    assert match.unplanned == ("attn",)


def test_the_only_block_of_a_plan_is_found():
    assert match_names(["blocks.0.attn"], ["attn"]).removed == "blocks.0"
