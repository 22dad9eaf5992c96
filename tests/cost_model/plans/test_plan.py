from __future__ import annotations

import tempfile
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jetvit.cost_model import Choice, Fingerprint, FrontPoint, Measured, Plan, SitePlan, SiteShape
from jetvit.patterns.errors import PlanError
from tests.cost_model.sites import as_site
from tests.cost_model.strategies import plans, site_plans, tensors

SHAPE = SiteShape("blocks.0.attn", 6, 64, {"packed": (1152, 384), "out": (384, 384)}, 5, 0, None)
FINGERPRINT = Fingerprint(tuple(replace(SHAPE, name=f"blocks.{i}.attn") for i in range(3)))
WINDOW = Choice("window", window=(16, 16))
PLAN = Plan(
    sites=(SitePlan("blocks.0.attn", WINDOW, "cheap"), SitePlan("blocks.1.attn", Choice("full"), "needed")),
    fingerprint=FINGERPRINT,
    weights={"blocks.0.attn.qkv.weight": torch.ones(2, 3), "blocks.0.attn.qkv.bias": torch.zeros(3)},
)

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@few
@given(plans())
def test_save_then_load_is_identity(plan: Plan):
    with tempfile.TemporaryDirectory() as folder:
        plan.save(folder)
        loaded = Plan.load(folder)
    assert loaded == plan
    assert loaded.digest() == plan.digest()
    assert loaded.sites == plan.sites
    assert loaded.provenance == plan.provenance
    assert {fqn: (t.dtype, t.shape) for fqn, t in loaded.weights.items()} == {
        fqn: (t.dtype, t.shape) for fqn, t in plan.weights.items()
    }


@few
@given(plans(), st.data())
def test_any_change_makes_plans_unequal(plan: Plan, data: st.DataObject):
    shape = replace(SHAPE, name="one.more")
    changed = data.draw(
        st.sampled_from(
            [
                replace(plan, size=(1, 7919)),
                replace(plan, front=(*plan.front, FrontPoint(1, 0.5))),
                replace(plan, base=dict(plan.base) | {"a.new.weight": (1.0, 1.0)}),
                replace(plan, provenance=dict(plan.provenance) | {"a new entry in it": 1}),
                replace(plan, weights=dict(plan.weights) | {"a.new.weight": torch.zeros(0)}),
                replace(plan, fingerprint=Fingerprint((*plan.fingerprint.sites, shape))),
            ]
        )
    )
    assert changed != plan


@few
@given(plans(), st.randoms())
def test_the_digest_is_over_what_a_plan_does(plan: Plan, random):
    sites = [SitePlan(site.name, site.choice) for site in plan.sites]
    random.shuffle(sites)
    weights = dict(reversed(plan.weights.items()))
    bare = Plan(tuple(sites), plan.fingerprint, weights=weights)
    assert bare.digest() == plan.digest()


@few
@given(plans(), site_plans("one.more").filter(lambda site: site.choice.kind != "full"))
def test_another_choice_is_another_digest(plan: Plan, site: SitePlan):
    fingerprint = Fingerprint((*plan.fingerprint.sites, replace(SHAPE, name="one.more")))
    full = replace(plan, fingerprint=fingerprint, sites=(*plan.sites, SitePlan("one.more", Choice("full"))))
    other = replace(plan, fingerprint=fingerprint, sites=(*plan.sites, site))
    assert full.digest() == plan.digest() != other.digest()


@given(tensors(), tensors())
def test_weights_are_equal_and_digested_bit_by_bit(one: torch.Tensor, other: torch.Tensor):
    ours, theirs = (replace(PLAN, weights={"w": tensor}) for tensor in (one, other))
    same = (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.contiguous().reshape(-1).view(torch.uint8).tolist()
        == other.contiguous().reshape(-1).view(torch.uint8).tolist()
    )
    assert (ours == theirs) == same
    assert (ours.digest() == theirs.digest()) == same


def test_nan_weights_equal_themselves_and_minus_zero_is_not_zero():
    nan = replace(PLAN, weights={"w": torch.tensor([float("nan")])})
    assert nan == replace(PLAN, weights={"w": torch.tensor([float("nan")])})
    assert replace(PLAN, weights={"w": torch.tensor([0.0])}) != replace(PLAN, weights={"w": torch.tensor([-0.0])})


def test_the_name_of_a_weight_is_part_of_the_digest():
    renamed = replace(PLAN, weights={"x." + fqn: weight for fqn, weight in PLAN.weights.items()})
    assert renamed.digest() != PLAN.digest()


def test_the_digest_is_the_same_in_every_release():
    assert PLAN.digest() == "2e7ed63d660b5b7e53bf6b64166dedd4af55a575d28cf76946ed34c29aa6639a"


def test_choice_for():
    assert PLAN.choice_for("blocks.0.attn") == WINDOW
    assert PLAN.choice_for("blocks.2.attn") == Choice("full")


def test_a_plan_is_no_dict_key_and_no_equal_of_other_things():
    assert PLAN != "plan"
    with pytest.raises(TypeError, match="unhashable"):
        hash(PLAN)


def test_a_plan_owns_its_provenance():
    provenance = {"device": "cpu", "sizes": (1, 2)}
    plan = replace(PLAN, provenance=provenance)
    provenance["device"] = "cuda"
    assert plan.provenance == {"device": "cpu", "sizes": [1, 2]}


@pytest.mark.parametrize(
    ("change", "what", "where"),
    [
        ({"sites": (PLAN.sites[0], PLAN.sites[0])}, "the plan names a site twice", "site blocks.0.attn"),
        ({"sites": (SitePlan("neck.attn", WINDOW),)}, "not in its fingerprint", "site neck.attn"),
        ({"weights": {"base_samples/w": torch.zeros(1)}}, "reserved name", "base_samples/w"),
        ({"weights": {}, "base_samples": {"w": torch.zeros(1)}}, "and no weights", "w"),
        ({"base_samples": {"w": torch.zeros(2, 2)}}, "not a row of fp32", "base_samples/w"),
        ({"base_samples": {"w": torch.zeros(2).half()}}, "not a row of fp32", "base_samples/w"),
        ({"provenance": {"x": float("nan")}}, "not JSON", "$.provenance"),
        ({"provenance": {"x": torch.zeros(1)}}, "not JSON", "$.provenance"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change: dict, what: str, where: str):
    with pytest.raises(PlanError) as error:
        replace(PLAN, **change)
    assert what in error.value.what
    assert error.value.where == where
    assert error.value.do


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"provenance": {"x": {"y": 10**30}}}, "$.provenance.x.y"),
        ({"provenance": {"x": {"\x1b[2J": 1}}}, "$.provenance.x"),
        ({"provenance": {"x": ["\x1b[2J"]}}, "$.provenance.x[0]"),
        ({"provenance": {"x": 10**30}}, "$.provenance.x"),
        ({"size": (0, 5)}, "$.size"),
        ({"sites": (replace(PLAN.sites[0], why="\x1b[31m"),)}, "$.sites[0].why"),
        ({"sites": (replace(PLAN.sites[0], why="\ud800"),)}, "$.sites[0].why"),
        ({"sites": (replace(PLAN.sites[0], drift=float("inf")),)}, "$.sites[0].drift"),
        ({"sites": (replace(PLAN.sites[0], latency_ms=-1.0),)}, "$.sites[0].latency_ms"),
        ({"sites": (replace(PLAN.sites[0], measured=(Measured(WINDOW, float("nan")),)),)}, "$.sites[0].measured[0]"),
        ({"front": (FrontPoint(-1, 0.0),)}, "$.front[0].changed"),
        ({"fingerprint": Fingerprint((*FINGERPRINT.sites, replace(SHAPE, name="a b")))}, "$.fingerprint.sites[3].name"),
        ({"fingerprint": Fingerprint((*FINGERPRINT.sites, replace(SHAPE, name="a\n")))}, "$.fingerprint.sites[3].name"),
    ],
)
def test_a_plan_that_cannot_be_read_again_is_not_saved(change: dict, where: str, tmp_path):
    with pytest.raises(PlanError) as error:
        replace(PLAN, **change).save(tmp_path / "plan")
    assert error.value.where.startswith(f"the plan to save, {where}")
    assert not (tmp_path / "plan").exists()


def test_match_finds_the_sites_under_a_prefix():
    model = [replace(shape, name="model." + shape.name) for shape in FINGERPRINT.sites]
    match = PLAN.match(map(as_site, model))
    assert match.mapping == {"blocks.0.attn": "model.blocks.0.attn", "blocks.1.attn": "model.blocks.1.attn"}
    assert match.unplanned == ("model.blocks.2.attn",)
    assert match.added == "model"


def test_match_refuses_a_model_with_other_sites():
    model = [replace(shape, num_heads=12) for shape in FINGERPRINT.sites]
    with pytest.raises(PlanError) as error:
        PLAN.match(map(as_site, model))
    assert error.value.why == "site blocks.0.attn: num_heads is 6 in the plan and 12 in the model"
    assert "calibrate" in error.value.do


@pytest.mark.parametrize("partial", [False, True])
def test_match_looks_at_sites_that_keep_full_attention_too(partial: bool):
    model = [FINGERPRINT.sites[0], FINGERPRINT.sites[1], replace(FINGERPRINT.sites[2], num_heads=1)]
    with pytest.raises(PlanError, match=r"blocks.2.attn: num_heads is 6 in the plan and 1 in the model"):
        PLAN.match(map(as_site, model), partial=partial)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("partial", [False, True])
def test_match_refuses_a_deeper_model_of_the_same_shapes(prefix: str, partial: bool):
    names = [shape.name for shape in FINGERPRINT.sites] + ["blocks.3.attn"]
    model = [replace(FINGERPRINT.sites[0], name=prefix + name) for name in names]
    with pytest.raises(PlanError, match=f"site {prefix}blocks.3.attn is in the model and not in the plan"):
        PLAN.match(map(as_site, model), partial=partial)


def test_match_refuses_a_shallower_model_of_the_same_shapes():
    with pytest.raises(PlanError, match=r"site blocks.2.attn is in the plan and not in the model"):
        PLAN.match(map(as_site, FINGERPRINT.sites[:2]))
    assert PLAN.match(map(as_site, FINGERPRINT.sites[:2]), partial=True).absent == ()


def test_match_leaves_attention_outside_of_the_plans_part_alone():
    model = [replace(shape, name="backbone." + shape.name) for shape in FINGERPRINT.sites]
    head = replace(FINGERPRINT.sites[0], name="head.attn", num_heads=2)
    assert PLAN.match(map(as_site, [*model, head])).unplanned == ("backbone.blocks.2.attn", "head.attn")


def test_calls_of_one_module_in_several_graphs():
    shapes = (replace(FINGERPRINT.sites[0], name="core"), replace(FINGERPRINT.sites[0], name="core#1"))
    window = Choice("window", window=(4, 4))
    there = [as_site(shapes[0])]  # after a graph break the second call has the name of the first, too
    alike = Plan(tuple(SitePlan(shape.name, window) for shape in shapes), Fingerprint(shapes))
    assert alike.match(there, partial=True).mapping == {"core": "core"}
    differ = Plan((SitePlan("core", Choice("full")), SitePlan("core#1", window)), Fingerprint(shapes))
    with pytest.raises(PlanError, match="the calls of core are spread over several graphs"):
        differ.match(there, partial=True)


def test_match_of_a_piece_of_the_model():
    with pytest.raises(PlanError, match="for another model"):
        PLAN.match([as_site(FINGERPRINT.sites[1])])
    assert PLAN.match([as_site(FINGERPRINT.sites[1])], partial=True).absent == ("blocks.0.attn",)
