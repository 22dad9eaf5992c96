"""A plan fits a model whose names changed with a release; and nothing that only looks like it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from jetvit.cost_model import Choice, Fingerprint, Plan, SitePlan, base_record, renamed_matches, sample_base
from jetvit.cost_model.plans.fingerprint import SiteShape
from jetvit.patterns import PlanError
from tests.cost_model.plans.test_plan import as_site

SHAPE = SiteShape("", 6, 64, {"q": (384, 384), "out": (384, 384)}, 1, 0, None)
OLD = "encoder.layer.{}.attention.attention"  # transformers 5.17, DINOv2
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}


def shapes(pattern: str, count: int = 3, **fields: object) -> list[SiteShape]:
    return [replace(SHAPE, name=pattern.format(index), **fields) for index in range(count)]


def plan_on(pattern: str, count: int = 3, **fields: object) -> Plan:
    fingerprint = Fingerprint(tuple(shapes(pattern, count)))
    return Plan(tuple(SitePlan(name, Choice("linear")) for name in fingerprint.names), fingerprint, **fields)


def sites(*groups: list[SiteShape]) -> list:
    return [as_site(shape) for group in groups for shape in group]


def tensors(pattern: str, leaf: str, count: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {pattern.format(index) + f".{leaf}.weight": torch.randn(8, 8, generator=generator) for index in range(count)}


@pytest.mark.parametrize(
    "new",
    [
        "encoder.layer.{}.attention",  # 5.24, DINOv2
        "backbone.encoder.layer.{}.attention",
        "layer.{}.attention",
        "layers.{}.attention",  # from 4.57 to 5.17, ViT
        "encoder.blocks.{}.attention.attention",
        "encoder.layer.{}.self_attn",
    ],
)
def test_names_of_another_release(new: str) -> None:
    match = plan_on(OLD).match(sites(shapes(new)))
    assert match.mapping == {OLD.format(index): new.format(index) for index in range(3)}
    assert match.rename(OLD.format(1) + ".linear_attention.b2") == new.format(1) + ".linear_attention.b2"
    back = plan_on(new).match(sites(shapes(OLD)))
    assert back.mapping == {new.format(index): OLD.format(index) for index in range(3)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (OLD, "blocks.{}.attn"),  # two levels
        ("encoder.0.layer.{}.attn", "encoder.1.layer.{}.attn"),  # an index is no name
        ("layer.{}.attn#0", "layer.{}.attn#1"),
        ("attn{}", "core{}"),
    ],
)
def test_names_that_differ_by_more_are_another_model(old: str, new: str) -> None:
    with pytest.raises(PlanError, match="for another model"):
        plan_on(old).match(sites(shapes(new)))


@pytest.mark.parametrize("count", [2, 4])
def test_all_sites_have_to_be_there_and_look_alike(count: int) -> None:
    with pytest.raises(PlanError, match="for another model"):
        plan_on(OLD).match(sites(shapes("encoder.layer.{}.attention", count)))
    with pytest.raises(PlanError, match="for another model"):
        plan_on(OLD).match(sites(shapes("encoder.layer.{}.attention", num_heads=12)))


def test_fingerprints_decide_between_parts_of_a_model_and_may_not_be_able_to() -> None:
    plan = plan_on("layer.{}.attn")
    teacher, student = shapes("teacher.blocks.{}.attn"), shapes("student.blocks.{}.attn", num_heads=3)
    assert plan.match(sites(teacher, student)).mapping["layer.0.attn"] == "teacher.blocks.0.attn"
    with pytest.raises(
        PlanError, match=r"more than one part(.|\n)*it could be any of teacher.blocks.0.attn, student.blocks.0.attn"
    ):
        plan.match(sites(teacher, shapes("student.blocks.{}.attn")))


def test_a_name_that_the_model_has_is_never_renamed() -> None:
    match = plan_on("layer.{}.attn").match(sites(shapes("vit.layer.{}.attn"), shapes("decoder.layers.{}.attn")))
    assert not match.renamed
    assert match.mapping == {f"layer.{index}.attn": f"vit.layer.{index}.attn" for index in range(3)}


def test_a_part_of_a_model_is_renamed_only_if_it_has_the_plans_weights() -> None:
    """After a graph break the decoder is alone: names and shapes may fit the plan of the encoder."""
    own, others = tensors(OLD, "query"), tensors(OLD, "query", seed=1)
    new = "encoder.layer.{}.attention"
    renamed = {name.replace(".attention.attention.query", ".attention.q_proj"): own[name] for name in own}
    strange = {name.replace(".attention.attention.query", ".attention.q_proj"): others[name] for name in others}
    for known in ({"base": base_record(own)}, {"base_samples": sample_base(own), "weights": {"w": torch.ones(1)}}):
        plan = plan_on(OLD, **known)
        assert plan.match(sites(shapes(new)), partial=True, tensors=renamed).mapping[OLD.format(0)] == new.format(0)
        assert plan.match(sites(shapes(new)), partial=True, tensors=strange).mapping == {}
    assert plan_on(OLD).match(sites(shapes(new)), partial=True, tensors=renamed).mapping == {}


def test_renamed_parameters_are_found_by_their_values() -> None:
    """`query` became `q_proj`: weights of the plan go where the model has the weights that they were trained from."""
    own: dict[str, torch.Tensor] = {}
    for index, leaf in enumerate(PROJECTIONS):
        own |= tensors(OLD, leaf, seed=index)
    model = dict(own)
    for old, new in PROJECTIONS.items():
        model = {name.replace(f"attention.attention.{old}", f"attention.{new}"): value for name, value in model.items()}
    plan = plan_on(OLD, weights={"w": torch.ones(1)}, base_samples=sample_base(own))
    match = plan.match(sites(shapes("encoder.layer.{}.attention")), tensors=model)
    for old, new in PROJECTIONS.items():
        for part in ("weight", "bias"):
            name = match.rename(f"{OLD.format(2)}.{old}.{part}")
            assert name == f"encoder.layer.2.attention.{new}.{part}"
    assert match.rename("encoder.layer.2.mlp.fc1.weight") == "encoder.layer.2.mlp.fc1.weight"


segments = st.sampled_from(["encoder", "layer", "blocks", "attention", "attn", "self"])


@given(
    head=st.lists(segments, max_size=2),
    tail=st.lists(segments, min_size=1, max_size=2),
    prefix=st.lists(segments, max_size=2),
    level=st.integers(0, 4),
    other=st.sampled_from(["core", "layers"]),
    repeated=st.booleans(),
    count=st.integers(1, 4),
)
def test_every_such_renaming_is_among_those_tried(head, tail, prefix, level, other, repeated, count) -> None:
    """And each that is tried keeps all layer indices and never gives two sites one name."""
    old = [*head, "{}", *tail]
    assume(len(set(tail)) == len(tail))
    new = [other if index == level % len(old) and part != "{}" else part for index, part in enumerate(old)]
    new = [*prefix, *new, *([new[-1]] if repeated else [])]
    planned, there = ([".".join(parts).format(index) for index in range(count)] for parts in (old, new))
    matches = list(renamed_matches(planned, there))
    assert dict(zip(planned, there, strict=True)) in [match.mapping for match in matches]
    for match in matches:
        assert sorted(match.mapping) == planned
        assert len(set(match.mapping.values())) == count
        for name, renamed in match.mapping.items():
            assert [part for part in name.split(".") if part.isdigit()] == [
                part for part in renamed.split(".") if part.isdigit()
            ]
