from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from jetvit.cost_model import Fingerprint, SiteShape
from jetvit.patterns.errors import PlanError
from tests.cost_model.sites import as_site
from tests.cost_model.strategies import shapes

SHAPE = SiteShape("blocks.3.attn", 6, 64, {"packed": (1152, 384), "out": (384, 384)}, 5, 0, "half")


def test_a_captured_site():
    assert Fingerprint.of([as_site(SHAPE)]) == Fingerprint((SHAPE,))
    assert SiteShape.of(as_site(replace(SHAPE, rope=None))).rope is None


def test_a_symbolic_token_count_is_dynamic():
    symbol = ShapeEnv().create_unbacked_symint()
    assert SiteShape.of(as_site(SHAPE, extra_before=symbol)).extra_before == "dynamic"


@given(shapes("attn"))
def test_json_there_and_back(shape: SiteShape):
    assert SiteShape.from_json(shape.to_json()) == shape


@given(st.lists(st.sampled_from("abcdef"), unique=True).flatmap(lambda ns: st.tuples(*map(shapes, ns))), st.randoms())
def test_a_fingerprint_has_no_difference_from_itself_in_any_order(sites: tuple[SiteShape, ...], random):
    shuffled = list(sites)
    random.shuffle(shuffled)
    assert Fingerprint(sites).difference(Fingerprint(tuple(shuffled))) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 12}, "num_heads is 6 in the plan and 12 in the model"),
        ({"head_dim": 32}, "head_dim is 64 in the plan and 32 in the model"),
        ({"extra_before": 1}, "extra_before is 5 in the plan and 1 in the model"),
        ({"extra_after": 2}, "extra_after is 0 in the plan and 2 in the model"),
        ({"rope": None}, "rope is half in the plan and None in the model"),
        (
            {"projections": {"packed": (1152, 768), "out": (384, 384)}},
            "the packed projection is 1152x384 in the plan and 1152x768 in the model",
        ),
        (
            {"projections": {"packed": (1152, 384), "out": (768, 384)}},
            "the out projection is 384x384 in the plan and 768x384 in the model",
        ),
    ],
)
def test_the_difference_is_named(changes: dict, words: str):
    first = replace(SHAPE, name="blocks.0.attn")
    other = Fingerprint((first, replace(SHAPE, **changes)))
    assert Fingerprint((first, SHAPE)).difference(other) == f"site blocks.3.attn: {words}"


def test_the_first_difference_is_named():
    ours = Fingerprint((replace(SHAPE, name="a"), replace(SHAPE, name="b")))
    theirs = Fingerprint((replace(SHAPE, name="a", rope=None), replace(SHAPE, name="b", num_heads=1)))
    assert "site a: rope" in (ours.difference(theirs) or "")


def test_a_missing_site_is_named():
    one, two = Fingerprint((SHAPE,)), Fingerprint((SHAPE, replace(SHAPE, name="neck.attn")))
    assert two.difference(one) == "site neck.attn is in the plan and not in the model"
    assert one.difference(two) == "site neck.attn is in the model and not in the plan"


def test_a_dynamic_count_agrees_with_every_count():
    dynamic = Fingerprint((replace(SHAPE, extra_before="dynamic"),))
    assert dynamic.difference(Fingerprint((SHAPE,))) is None
    assert Fingerprint((SHAPE,)).difference(dynamic) is None


SEPARATE = {"q": (384, 384), "k": (384, 384), "v": (384, 384), "out": (384, 384)}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SEPARATE, SHAPE.projections),  # merged
        (SHAPE.projections, {"out": (384, 384)}),  # made by a graph from parts, folded in a file
        (SEPARATE, {"out": (384, 384)}),
        (SEPARATE, {"packed": (1152, 384)}),  # the weight behind it is quantised
        (SEPARATE, {}),  # all of them are shared by two calls
    ],
)
def test_projections_that_were_put_together_agree(ours: dict, theirs: dict):
    one, two = (Fingerprint((replace(SHAPE, projections=each),)) for each in (ours, theirs))
    assert one.difference(two) is None
    assert two.difference(one) is None


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"packed": (1536, 384), "out": (384, 384)}, "the packed projection is 1152x384 in the plan and 1536x384"),
        ({"packed": (1152, 384), "out": (768, 384)}, "the out projection is 384x384 in the plan and 768x384"),
        ({"q": (384, 384), "out": (384, 384)}, "the packed projection is 1152x384 in the plan and absent"),
        ({"out": (768, 384)}, "the out projection is 384x384 in the plan and 768x384"),
    ],
)
def test_projections_of_another_size_do_not(theirs: dict, words: str):
    ours, other = (Fingerprint((replace(SHAPE, projections=each),)) for each in (SEPARATE, theirs))
    assert words in (ours.difference(other) or "")


def test_within_moves_the_sites_of_one_part():
    both = Fingerprint((SHAPE, replace(SHAPE, name="neck.attn")))
    assert both.within("neck", "model").names == ("model.attn",)
    assert both.within("", "model").names == (f"model.{SHAPE.name}", "model.neck.attn")
    assert both.within("").names == both.names


def test_a_site_twice_is_refused():
    with pytest.raises(PlanError) as error:
        Fingerprint((SHAPE, SHAPE))
    assert error.value.where == "site blocks.3.attn"
    assert error.value.do
