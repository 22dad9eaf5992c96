"""A plan is done at every site that it names, with the weights that it brings, or refused before the first."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetvit
from jetvit.cost_model import Choice, Fingerprint, Plan, base_record, projection_weights, sample_base
from jetvit.kernels import linear_attention
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS, linear_attention_reference
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.rewrites.apply_plan import ApplyPlan
from jetvit.passes.rewrites.plan_checks import rewritten_choice
from jetvit.patterns import PlanError
from jetvit.patterns.operator_args import arguments_of
from tests.passes.models import (
    ALTERNATING,
    FULL,
    LINEAR,
    ROADS,
    WINDOW,
    assert_close,
    by_road,
    compiled,
    count,
    error,
    exported,
    plan_of,
    planned,
    rewrite,
)
from tests.patterns.test_geometry import PermutedPatches
from tests.zoo import CASES
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, SCALE, SIZE, Attention, Block, TinyViT, sdpa
from tests.zoo.quick import sweep

IMAGE = images(2, 3, *SIZE)
HIDDEN, TAPS = 8, 9
CONV = Choice("linear", conv_size=3)
GENERATED, STATIC = "blocks.0.attn", "blocks.1.attn"
CHANGED = "blocks.0.attn.qkv.weight"


def vit(**options: Any) -> TinyViT:
    return randomize(TinyViT(partial(Attention, sdpa), **options))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def new_weights() -> dict[str, Tensor]:
    """A generator at the first site, a static kernel at the second, and a changed weight of the model."""
    return {
        f"{GENERATED}.linear_attention.w1": random(HIDDEN, DIM, seed=1),
        f"{GENERATED}.linear_attention.b1": random(HIDDEN, seed=2),
        f"{GENERATED}.linear_attention.w2": random(DIM * TAPS, HIDDEN, seed=3),
        f"{GENERATED}.linear_attention.b2": random(DIM * TAPS, seed=4),
        f"{STATIC}.linear_attention.b2": random(DIM * TAPS, seed=5),
        CHANGED: random(3 * DIM, DIM, seed=6),
    }


def trained(model: nn.Module, weights: dict[str, Tensor] | None = None, **fields: Any) -> Plan:
    """A plan with weights, tied to the model's own by samples of them."""
    weights = new_weights() if weights is None else weights
    sites = jetvit.find_attention(model, IMAGE)
    samples = sample_base(dict(model.named_parameters()))
    return plan_of(sites, [CONV], weights=weights, base_samples=samples, **fields)


def by_hand(model: TinyViT, weights: dict[str, Tensor]) -> TinyViT:
    """The eager model with these weights and with linear attention written into its modules."""
    model = copy.deepcopy(model)
    model.load_state_dict({**model.state_dict(), CHANGED: weights[CHANGED]})

    def attend(site: str, *heads_first: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(1, 2).contiguous() for tensor in heads_first)
        absent = q.new_empty(0)
        parts = [weights.get(f"{site}.linear_attention.{part}", absent) for part in ("w1", "b1", "w2", "b2")]
        return linear_attention(q, k, v, absent, absent, *parts, 4, 6, 1, 3, 1e-6, "relu").transpose(1, 2)

    for index, block in enumerate(model.blocks):
        block.attn.attend = partial(attend, f"blocks.{index}.attn")
    return model


# --- with weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("road", ROADS)
def test_generators_kernels_and_changed_weights(road: str) -> None:
    model = vit()
    before = copy.deepcopy(model.state_dict())
    expected = by_hand(model, new_weights())(IMAGE)
    plan = trained(model)
    assert_close(by_road(road, model, ((IMAGE,), {}), plan)(IMAGE), expected)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for name in (CHANGED, f"{GENERATED}.linear_attention.w2", f"{STATIC}.linear_attention.b2"):  # each has a part in it
        other = by_hand(model, {**new_weights(), name: new_weights()[name] * 2})(IMAGE)
        assert error(other, expected) > 1e-3


def test_new_weights_have_their_names() -> None:
    model = vit()
    state = jetvit.optimize(model, IMAGE, plan=trained(model)).state_dict()
    for name, tensor in new_weights().items():
        torch.testing.assert_close(state[name].detach(), tensor, rtol=0, atol=0)


def test_merged_projections_have_the_plans_weights() -> None:
    """A plan asks for `q.weight` before it is merged away."""
    model = CASES["separate"].build()
    name = "blocks.1.attn.k.weight"
    plan = plan_of(jetvit.find_attention(model, IMAGE), [WINDOW], weights={name: random(DIM, DIM)})
    graph, fired = rewrite(export_model(model, (IMAGE,)), plan)
    assert fired["merge-projections"] == 2
    assert fired["apply-plan"] == 3
    changed = copy.deepcopy(model)
    changed.load_state_dict({**model.state_dict(), name: random(DIM, DIM)})
    assert_close(graph.program().module()(IMAGE), planned(changed, ((IMAGE,), {}), plan))


def test_weights_take_the_dtype_of_the_model() -> None:
    model = vit()
    plan = trained(model)
    double = copy.deepcopy(model).double()
    weights = {name: tensor.double() for name, tensor in new_weights().items()}
    optimized = jetvit.optimize(double, IMAGE.double(), plan=plan)
    assert {tensor.dtype for tensor in optimized.state_dict().values()} == {torch.float64}
    assert_close(optimized(IMAGE.double()), by_hand(double, weights)(IMAGE.double()), 1e-10)


def test_an_all_full_plan_with_weights_changes_the_model() -> None:
    """Also where nothing else is left to do: the program is not handed back as it was."""
    model = vit()
    program = jetvit.optimize(export_model(model, (IMAGE,)))
    plan = plan_of(jetvit.find_attention(program), [FULL], weights={CHANGED: new_weights()[CHANGED]})
    changed = copy.deepcopy(model)
    changed.load_state_dict({**model.state_dict(), CHANGED: new_weights()[CHANGED]})
    optimized = jetvit.optimize(program, plan=plan)
    assert optimized is not program
    assert_close(optimized.module()(IMAGE), changed(IMAGE))
    assert_close(program.module()(IMAGE), model(IMAGE))


def test_a_block_that_runs_twice_has_two_generators() -> None:
    model = CASES["shared_block"].build()
    sites = jetvit.find_attention(model, IMAGE)
    assert [site.name for site in sites] == ["blocks.0.attn", "blocks.0.attn#1"]
    weights = {f"{site.name}.linear_attention.b2": random(DIM * TAPS, seed=i) for i, site in enumerate(sites)}
    plan = plan_of(sites, [CONV], weights=weights)
    expected = planned(model, ((IMAGE,), {}), plan)
    optimized = jetvit.optimize(model, IMAGE, plan=plan)
    assert set(weights) <= set(optimized.state_dict())
    assert_close(optimized(IMAGE), expected)
    assert_close(compiled(model, plan=plan)(IMAGE), expected)


# --- feature maps -----------------------------------------------------------------------------------------------------


def of_feature_map(model: nn.Module, feature_map: str) -> Plan:
    return plan_of(jetvit.find_attention(model, IMAGE), [Choice("linear", feature_map=feature_map)])


@pytest.mark.parametrize(
    ("feature_map", "road"),
    sweep(
        product(FEATURE_MAPS, ROADS),
        quick=[*((each, ROADS[0]) for each in FEATURE_MAPS), ("hedgehog", ROADS[1])],
    ),
)
def test_a_plan_of_each_feature_map(feature_map: str, road: str) -> None:
    model = vit()
    expected = copy.deepcopy(model)

    def attend(*heads_first: Tensor) -> Tensor:
        q, k, v = (tensor.transpose(1, 2) for tensor in heads_first)
        absent = [q.new_empty(0)] * 6
        return linear_attention_reference(q, k, v, *absent, 4, 6, 1, 0, 1e-6, feature_map).transpose(1, 2)

    for block in expected.blocks:
        block.attn.attend = attend
    plan = of_feature_map(model, feature_map)
    assert_close(by_road(road, model, ((IMAGE,), {}), plan)(IMAGE), expected(IMAGE))


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_the_same_feature_map_again_changes_nothing_and_another_is_refused(feature_map: str) -> None:
    model = vit()
    optimized = jetvit.optimize(export_model(model, (IMAGE,)), plan=of_feature_map(model, feature_map))
    rewritten = jetvit.find_attention(optimized).rewritten
    assert [rewritten_choice(entry).label for entry in rewritten] == [f"linear {feature_map}"] * 2
    assert jetvit.optimize(optimized, plan=of_feature_map(model, feature_map)) is optimized
    other = next(name for name in FEATURE_MAPS if name != feature_map)
    message = f"is linear {feature_map} in the graph and linear {other} in the plan"
    with pytest.raises(PlanError, match=message):
        jetvit.optimize(optimized, plan=of_feature_map(model, other))


# --- names of another release -----------------------------------------------------------------------------------------


def of_another_release(model: nn.Module) -> tuple[Plan, Plan]:
    """A plan, and the same one as it would be of a release that called `blocks` `layers`."""
    sites = jetvit.find_attention(model, IMAGE)
    plan = plan_of(sites, base=base_record(projection_weights(sites, dict(model.state_dict()))))

    def before(name: str) -> str:
        return name.replace("blocks.", "layers.")

    fingerprint = Fingerprint(tuple(replace(site, name=before(site.name)) for site in plan.fingerprint.sites))
    entries = tuple(replace(entry, name=before(entry.name)) for entry in plan.sites)
    base = {before(name): values for name, values in plan.base.items()}
    return plan, Plan(entries, fingerprint, base=base)


@pytest.mark.parametrize("road", ROADS)
def test_a_plan_of_another_release_is_the_same_plan(road: str) -> None:
    model = vit()
    plan, older = of_another_release(model)
    assert_close(by_road(road, model, ((IMAGE,), {}), older)(IMAGE), planned(model, ((IMAGE,), {}), plan))


def test_a_plan_of_another_release_again_changes_nothing_and_another_is_refused() -> None:
    model = vit()
    plan, older = of_another_release(model)
    optimized = jetvit.optimize(export_model(model, (IMAGE,)), plan=plan)
    assert jetvit.optimize(optimized, plan=older) is optimized
    turned = tuple(
        replace(entry, choice=other.choice) for entry, other in zip(older.sites, older.sites[::-1], strict=True)
    )
    with pytest.raises(PlanError, match="rewritten before, by another plan"):
        jetvit.optimize(optimized, plan=replace(older, sites=turned))


# --- refused ----------------------------------------------------------------------------------------------------------


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in new_weights().items() if key != name}


def misshapen(name: str, *shape: int) -> dict[str, Tensor]:
    return {**new_weights(), name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (without(f"{GENERATED}.linear_attention.w1"), "no weights for the convolution of blocks.0.attn"),
        (without(f"{GENERATED}.linear_attention.b2"), "no weights for the convolution of blocks.0.attn"),
        (without(f"{STATIC}.linear_attention.b2"), "no weights for the convolution of blocks.1.attn"),
        (
            misshapen(f"{STATIC}.linear_attention.b2", DIM * 25),
            "b2 is \\[800\\], and linear relu conv3 needs \\[288\\]",
        ),
        (misshapen(f"{GENERATED}.linear_attention.w1", HIDDEN, 16), "w1 is \\[8, 16\\], .* needs \\[8, 32\\]"),
        (misshapen(f"{GENERATED}.linear_attention.b1", 5), "wrong shape at blocks.0.attn"),
        (misshapen(f"{GENERATED}.linear_attention.b1"), "wrong shape at blocks.0.attn"),
        (misshapen(CHANGED, DIM, DIM), "changes blocks.0.attn.qkv.weight, which does not fit"),
        (
            {**new_weights(), "blocks.7.norm.weight": torch.ones(4)},
            "blocks.7.norm.weight, which does not fit the model",
        ),
    ],
)
def test_missing_and_misshapen_weights(weights: dict[str, Tensor], message: str) -> None:
    model = vit()
    graph = ExportedGraph(export_model(model, (IMAGE,)))
    with pytest.raises(PlanError, match=message):
        ApplyPlan(trained(model, weights))(graph)
    rewritten = count(graph.module, torch.ops.jetvit.linear_attention.default)
    assert rewritten == 0, "it was refused half way"


@pytest.mark.parametrize("road", ROADS)
def test_another_checkpoint_is_refused(road: str) -> None:
    plan, other = trained(vit()), randomize(vit(), seed=1)
    with pytest.raises(Exception, match="a base weight is not the one that the plan was made on"):
        by_road(road, other, ((IMAGE,), {}), plan)(IMAGE)


def test_other_weights_on_a_rewritten_program_are_another_plan() -> None:
    model = vit()
    optimized = jetvit.optimize(export_model(model, (IMAGE,)), plan=trained(model))
    assert jetvit.optimize(optimized, plan=trained(model)) is optimized
    name = f"{STATIC}.linear_attention.b2"
    with pytest.raises(PlanError, match=f"{name} has other values in the graph than in the plan"):
        jetvit.optimize(optimized, plan=trained(model, {**new_weights(), name: new_weights()[name] + 1}))


def test_another_model_is_refused() -> None:
    _, _, program = exported("sdpa")
    plan = plan_of(jetvit.find_attention(program))
    with pytest.raises(PlanError, match=r"for another model(.|\n)*num_heads"):
        jetvit.optimize(exported("headless")[2], plan=plan)
    with pytest.raises(PlanError, match="for another model"):
        jetvit.optimize(exported("hf_vit_sdpa")[2], plan=plan)
    with pytest.raises(PlanError, match=r"cannot be rewritten here(.|\n)*causal attention"):
        jetvit.optimize(exported("causal")[2], plan=plan)


# --- a model that calls another ---------------------------------------------------------------------------------------


class Twice(nn.Module):
    """A backbone that is called with two views."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image) + self.net(image.flip(-1))


@pytest.mark.parametrize(
    ("with_weights", "road"), sweep(product([False, True], ROADS), quick=[(False, ROADS[0]), (True, ROADS[1])])
)
def test_the_plan_of_a_backbone_holds_for_all_its_calls(road: str, with_weights: bool) -> None:
    model = vit()
    plan = trained(model) if with_weights else plan_of(jetvit.find_attention(model, IMAGE))
    fast = by_road(road, Twice(model), ((IMAGE,), {}), plan)
    one = jetvit.optimize(model, IMAGE, plan=plan)
    assert_close(fast(IMAGE), one(IMAGE) + one(IMAGE.flip(-1)), 1e-4)
    if road == "export":
        assert jetvit.optimize(fast, plan=plan).graph_module.code == fast.graph_module.code  # it was applied before
        assert len([name for name in fast.state_dict() if name.endswith("b2")]) == 2 * with_weights


def test_a_later_call_that_looks_different_is_another_site() -> None:
    class Other(Twice):
        def forward(self, image: Tensor) -> Tensor:
            return self.net(image).mean() + self.net.blocks[0](self.net.tokens(image)[:, 1:]).mean()

    model = vit()
    with pytest.raises(PlanError, match=r"net\.blocks\.0\.attn#1 is in the model and not in the plan"):
        jetvit.optimize(Other(model), IMAGE, plan=plan_of(jetvit.find_attention(model, IMAGE)))


class Forwarding(nn.Module):
    """Hands on the attributes of the module inside, as wrappers for adapters do."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, image: Tensor) -> Tensor:
        return self.base(image)


@pytest.mark.parametrize(
    ("with_weights", "road"), sweep(product([False, True], ROADS), quick=[(False, ROADS[0]), (True, ROADS[1])])
)
def test_a_plan_goes_through_a_wrapper_with_attributes_of_its_own(road: str, with_weights: bool) -> None:
    model = vit()
    plan = trained(model) if with_weights else plan_of(jetvit.find_attention(Forwarding(model), IMAGE))
    fast = by_road(road, Forwarding(model), ((IMAGE,), {}), plan)
    assert_close(fast(IMAGE), by_road("export", model, ((IMAGE,), {}), plan)(IMAGE), 1e-4)


class Scaled(TinyViT):
    """A number of the model's code, which Dynamo makes an input of the graph under `dynamic=True`."""

    def __init__(self) -> None:
        super().__init__(partial(Attention, sdpa))
        self.factor = 0.7

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image * self.factor) * self.factor


@pytest.mark.parametrize("with_plan", [False, True])
def test_all_sizes_and_numbers_may_be_open(with_plan: bool) -> None:
    model = randomize(Scaled())
    plan = plan_of(jetvit.find_attention(model, IMAGE)) if with_plan else None
    fast = torch.compile(model, backend="jetvit", dynamic=True, options={"inner": "eager", "plan": plan})
    for size in (SIZE, (48, 64)):
        image = images(2, 3, *size)
        assert_close(fast(image), planned(model, ((image,), {}), plan) if plan is not None else model(image))


class Square(TinyViT):
    """Its check makes both sides of an image one symbol."""

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[-1] != image.shape[-2]:
            raise ValueError("square images only")
        return super().forward(image)


def test_a_square_of_open_size_has_a_grid() -> None:
    """Its count of tokens is the square of a side, which torch does not divide by that side again."""
    model = randomize(Square(partial(Attention, sdpa)))
    sides = [images(2, 3, side, side) for side in (32, 48, 64)]
    plan = plan_of(jetvit.find_attention(model, sides[0]))
    side = torch.export.Dim("side", min=2, max=16)
    shapes = {"image": {2: 8 * side, 3: 8 * side}}
    offline, fast = jetvit.optimize(model, sides[0], plan=plan, dynamic_shapes=shapes), compiled(model, plan=plan)
    for image in (*sides, sides[0]):
        expected = planned(model, ((image,), {}), plan)
        assert_close(fast(image), expected)
        assert_close(offline(image), expected)


# --- a part of the model ----------------------------------------------------------------------------------------------


class BreakBetween(TinyViT):
    """Dynamo sees the first block with the image, the second one without."""

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks[0](self.tokens(image))
        torch._dynamo.graph_break()
        return self.norm(self.blocks[1](x))


class BreakInside(Attention):
    """Dynamo sees the projections in one graph and the product in another."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        torch._dynamo.graph_break()
        return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(x.shape))


class BreakBefore(TinyViT):
    """Dynamo sees a graph without parameters, then the whole model."""

    def forward(self, image: Tensor) -> Tensor:
        image = image * 2 - image
        torch._dynamo.graph_break()
        return super().forward(image)


def test_behind_a_break_the_token_grid_is_known() -> None:
    """The graph in front of the break has told it; a compiled model may be called at many sizes."""
    model, whole = randomize(BreakBetween(partial(Attention, sdpa))), vit()
    plan = plan_of(jetvit.find_attention(whole, IMAGE))
    fast = compiled(model, plan=plan)
    for size in ((32, 48), (48, 64), (64, 64), (32, 48)):
        image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
        expected = planned(whole, ((image,), {}), plan)
        assert_close(fast(image), expected)
        assert (expected - whole(image)).abs().max() > 0.01


def test_behind_a_break_the_same_count_of_another_grid_is_refused() -> None:
    """4×6 and 6×4 tokens are one length: torch runs the graph that it compiled for the first."""
    model, whole = randomize(BreakBetween(partial(Attention, sdpa))), vit()
    fast = compiled(model, plan=plan_of(jetvit.find_attention(whole, IMAGE)))
    fast(torch.zeros(1, 3, 32, 48))
    with pytest.raises(PlanError, match="the token grid was 4×6 and is 6×4 now"):
        fast(torch.zeros(1, 3, 48, 32))
    fast(torch.zeros(1, 3, 32, 48))


class BreakThenEdit(BreakBetween):
    """The tokens are edited where no graph sees it."""

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks[0](self.tokens(image))
        torch.compiler.disable(Tensor.add_)(x, 0)
        return self.norm(self.blocks[1](x))


def test_tokens_that_were_edited_between_graphs_are_not_known() -> None:
    model, whole = randomize(BreakThenEdit(partial(Attention, sdpa))), vit()
    with pytest.raises(Exception, match=r"the plan changes blocks.1.attn(.|\n)*from an input(.|\n)*fullgraph=True"):
        compiled(model, plan=plan_of(jetvit.find_attention(whole, IMAGE)))(IMAGE)


def test_a_break_inside_of_attention_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    model, whole = randomize(TinyViT(partial(BreakInside, sdpa))), vit()
    plan = plan_of(jetvit.find_attention(whole, IMAGE))
    with pytest.raises(Exception, match=r"maybe blocks.0.attn(.|\n)*come into this graph as inputs"):
        compiled(model, plan=plan)(IMAGE)
    torch._dynamo.reset()
    with caplog.at_level(logging.WARNING, "jetvit"):
        result = compiled(model, plan=plan, partial="warn")(IMAGE)
    assert any("keeps full attention, against the plan" in record.getMessage() for record in caplog.records)
    assert_close(result, whole(IMAGE))


class BreakAt(Attention):
    """Breaks the graph at one step of the attention; transformers' way of handing out the weights."""

    def __init__(self, step: str) -> None:
        super().__init__(sdpa)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        scores = self.reached("scores", q @ k.transpose(-2, -1) * SCALE)
        weights = self.reached("weights", scores.softmax(dim=-1))
        out = self.reached("values", weights @ v)
        out, _ = self.both(out, weights)
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def reached(self, step: str, x: Tensor) -> Tensor:
        if step == self.step:
            torch._dynamo.graph_break()
        return x

    def both(self, out: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        return self.reached("both", out), weights


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("scores", "the softmax runs over an input of this graph"),
        ("weights", "the attention weights are returned, not by a product"),
        ("values", "the attention weights are returned|behind a graph break the module"),
        ("both", "the attention weights are returned"),
    ],
)
def test_a_break_at_any_step_of_attention_is_refused_at_once(step: str, reason: str) -> None:
    model, whole = randomize(TinyViT(partial(BreakAt, step))), randomize(TinyViT(partial(BreakAt, "")))
    plan = plan_of(jetvit.find_attention(whole, IMAGE))
    with pytest.raises(Exception, match=rf"maybe blocks.0.attn(.|\n)*({reason})(.|\n)*fullgraph=True"):
        compiled(model, plan=plan)(IMAGE)


def test_an_attention_of_the_plan_that_is_refused_is_named_with_the_reason() -> None:
    model, whole = randomize(TinyViT(partial(Attention, sdpa), patches=PermutedPatches)), vit()
    plan = plan_of(jetvit.find_attention(whole, IMAGE))
    with pytest.raises(PlanError, match=r"changes blocks.0.attn and 1 more(.|\n)*lost at(.|\n)*jetvit.explain"):
        jetvit.optimize(model, IMAGE, plan=plan)
    with pytest.raises(Exception, match=r"changes blocks.0.attn and 1 more(.|\n)*lost at(.|\n)*partial"):
        compiled(model, plan=plan)(IMAGE)
    torch._dynamo.reset()
    assert_close(compiled(model, plan=plan, partial="warn")(IMAGE), model(IMAGE))


def test_the_record_of_base_weights_is_for_the_part_that_is_there(caplog: pytest.LogCaptureFixture) -> None:
    model, whole = randomize(BreakBetween(partial(Attention, sdpa))), vit()
    plan = plan_of(jetvit.find_attention(whole, IMAGE), base=base_record(dict(whole.named_parameters())))
    with caplog.at_level(logging.WARNING, "jetvit"):
        compiled(model, plan=plan)(IMAGE)
    assert not any("made on other weights" in record.getMessage() for record in caplog.records)
    with torch.no_grad():
        model.patch_embed.proj.weight.mul_(3)
        model.blocks[0].norm1.weight.mul_(3)
        for parameter in model.parameters():
            parameter.mul_(2)
    with caplog.at_level(logging.WARNING, "jetvit"):
        torch._dynamo.reset()
        compiled(model, plan=plan)(IMAGE)
    assert any("made on other weights" in record.getMessage() for record in caplog.records)


def test_trained_weights_need_the_whole_model() -> None:
    """Weights that were trained for linear attention are no use beside full attention."""
    whole = vit()
    model = randomize(BreakBetween(partial(Attention, sdpa)))
    with pytest.raises(Exception, match=r"needs the whole model in one graph(.|\n)*fullgraph=True"):
        compiled(model, plan=trained(whole))(IMAGE)


def test_trained_weights_beside_another_graph() -> None:
    model = randomize(BreakBefore(partial(Attention, sdpa)))
    assert_close(compiled(model, plan=trained(vit()))(IMAGE), by_hand(vit(), new_weights())(IMAGE), 1e-4)


def test_regional_compilation_is_refused_with_advice() -> None:
    model = vit()
    plan = plan_of(jetvit.find_attention(model, IMAGE))
    for block in model.blocks:
        block.compile(backend="jetvit", options={"inner": "eager", "plan": plan})
    with pytest.raises(Exception, match=r"one block of the model(.|\n)*compile the whole model"):
        model(IMAGE)


def test_regional_compilation_without_a_plan_is_exact() -> None:
    model = vit()
    expected = model(IMAGE)
    for block in model.blocks:
        block.compile(backend="jetvit", options={"inner": "eager"})
    assert_close(model(IMAGE), expected)


def test_a_prefix_is_added_and_taken_away() -> None:
    """A plan made on a backbone fits the model around it, and the other way round."""
    backbone = vit()

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, image: Tensor) -> Tensor:
            return self.backbone(image)

    wrapper = Wrapper().eval()
    inner, outer = trained(backbone), jetvit.find_attention(wrapper, IMAGE)
    expected = by_hand(backbone, new_weights())(IMAGE)
    for road in ROADS:
        assert_close(by_road(road, wrapper, ((IMAGE,), {}), inner)(IMAGE), expected)
    plan = plan_of(outer, ALTERNATING)
    small = plan_of(jetvit.find_attention(backbone, IMAGE), ALTERNATING)
    assert_close(jetvit.optimize(backbone, IMAGE, plan=plan)(IMAGE), planned(backbone, ((IMAGE,), {}), small))


def test_far_from_the_plans_size_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    _, _, program = exported("sdpa")
    sites = jetvit.find_attention(program)
    for grid, warned in (([4, 6], False), ([8, 6], False), ([16, 16], True), ([2, 3], True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "jetvit"):
            ApplyPlan(plan_of(sites, provenance={"grid": grid}))(ExportedGraph(program))
        assert any("measure again" in record.getMessage() for record in caplog.records) == warned


def test_notes_are_in_the_record() -> None:
    _, _, program = exported("sdpa")
    sites = jetvit.find_attention(program)
    result = ApplyPlan(plan_of(sites, [LINEAR], provenance={"grid": [50, 50]}))(ExportedGraph(program))
    assert result.fired == 2
    assert result.notes == ("the plan was made for 50×50 tokens, and there are 4×6: measure again",)


def test_the_softmax_scale_goes_into_windows_alone() -> None:
    """Linear attention normalises by itself: a scale on q changes nothing in it but eps."""
    _, inputs, program = exported("sdpa_scaled")
    plan = plan_of(jetvit.find_attention(program), [WINDOW, LINEAR])
    graph, _ = rewrite(program, plan)
    window, linear = (node for node in graph.module.graph.nodes if str(node.target).startswith("jetvit."))
    assert arguments_of(window).scale == 0.4
    options = ("grid_h", "grid_w", "extra_before", "conv_size", "eps", "feature_map")
    arguments = arguments_of(linear)._asdict()
    assert [arguments[name] for name in options] == [4, 6, 1, 0, 1e-6, "relu"]
    assert_close(graph.program().module()(*inputs[0]), planned(program, inputs, plan))


def test_a_block_with_a_break_is_one_block() -> None:
    """A break inside of the blocks makes Dynamo compile them one by one: refused, because the plan would do nothing."""

    class Broken(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attn(self.norm1(x))
            torch._dynamo.graph_break()
            return x + self.mlp(self.norm2(x))

    model, plan = vit(block=Broken), plan_of(jetvit.find_attention(vit(), IMAGE))
    with pytest.raises(Exception, match="one block of the model"):
        compiled(model, plan=plan)(IMAGE)
    assert_close(compiled(model)(IMAGE), model(IMAGE))
