"""Three projections of one tensor become one product where the graph owns their weights, and stay three elsewhere."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetvit
from jetvit.passes.frontends.capture import capture_dynamo, export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.pipeline import rewrite as rewrite_graph
from jetvit.passes.rewrites.merge_projections import MergeProjections
from tests.passes.models import ALTERNATING, assert_close, aten, compiled, count, exported, plan_of, planned, rewrite
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, HEAD_DIM, HEADS, SIZE, SeparateAttention, TinyViT, scale_on_product, sdpa
from tests.zoo.quick import sweep

IMAGE = images(2, 3, *SIZE)


def merged(model: nn.Module) -> tuple[ExportedGraph, int]:
    graph = ExportedGraph(export_model(model, (IMAGE,)))
    before = count(graph.module, aten.linear.default)
    fired = MergeProjections()(graph).fired
    assert MergeProjections()(graph).fired == 0
    assert count(graph.module, aten.linear.default) == before - 2 * fired
    assert count(graph.module, aten.split_with_sizes.default) == fired
    assert_close(graph.program().module()(IMAGE), model(IMAGE))
    return graph, fired


def vit(attention: type[nn.Module] = SeparateAttention, *args: object) -> TinyViT:
    return randomize(TinyViT(partial(attention, *args)))


@pytest.mark.parametrize("product", [sdpa, scale_on_product])
def test_merged(product: object) -> None:
    graph, fired = merged(vit(SeparateAttention, product))
    assert fired == 2
    names = set(graph.program().state_dict)
    assert "blocks.0.attn.merged_qkv.weight" in names
    assert "blocks.0.attn.merged_qkv.bias" in names
    assert not names & {f"blocks.0.attn.{role}.{part}" for role in "qkv" for part in ("weight", "bias")}
    assert "blocks.0.attn.o.weight" in names


def test_the_merged_weight_is_a_copy() -> None:
    model = vit()
    optimized = jetvit.optimize(model, IMAGE)
    expected = torch.cat([getattr(model.blocks[0].attn, role).weight for role in "qkv"])
    weight = optimized.state_dict()["blocks.0.attn.merged_qkv.weight"]
    torch.testing.assert_close(weight, expected, rtol=0, atol=0)
    own = optimized.get_parameter("blocks.0.attn.merged_qkv.weight")
    own.zero_()
    assert model.blocks[0].attn.q.weight.abs().sum() > 0


@pytest.mark.parametrize("without", ["k", "qkv", "qv"])
def test_projections_without_a_bias(without: str) -> None:
    """DINOv3 and Whisper have no bias on k: the merged one is zero there."""
    model = vit()
    for block in model.blocks:
        for role in without:
            getattr(block.attn, role).bias = None
    graph, fired = merged(model)
    assert fired == 2
    bias = graph.program().state_dict.get("blocks.0.attn.merged_qkv.bias")
    assert (bias is None) == (without == "qkv")
    if bias is not None:
        assert bias.unflatten(0, (3, DIM)).abs().sum(1).gt(0).tolist() == [role not in without for role in "qkv"]


class QueryIsRead(SeparateAttention):
    """The query projection is read by something else as well."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        out = sdpa(self.heads(q), self.heads(self.k(x)), self.heads(self.v(x)))
        return self.o(out.transpose(1, 2).reshape(x.shape)) + q


class OtherKeys(SeparateAttention):
    """q reads another tensor than k and v."""

    def forward(self, x: Tensor) -> Tensor:
        out = sdpa(self.heads(self.q(x * 2)), self.heads(self.k(x)), self.heads(self.v(x)))
        return self.o(out.transpose(1, 2).reshape(x.shape))


class SharedWeight(SeparateAttention):
    """Queries and keys by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.k = self.q


class NormOverAll(SeparateAttention):
    """A norm over all heads reads the projection as a whole, and would read a strided part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        q = self.norm(self.q(x))
        out = sdpa(self.heads(q), self.heads(self.k(x)), self.heads(self.v(x)))
        return self.o(out.transpose(1, 2).reshape(x.shape))


class EditedInput(SeparateAttention):
    """Changes what k and v read through a view, so that the three inputs are one tensor with two values."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        q = self.q(x)
        x.view(-1).mul_(0.5)
        k, v = self.k(x), self.v(x)
        return self.o(sdpa(self.heads(q), self.heads(k), self.heads(v)).transpose(1, 2).reshape(x.shape))


class EditedQuery(SeparateAttention):
    """Scales q in place through a flat view: a part of a wider product has none."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        q.transpose(1, 2).view(-1).mul_(0.5)
        return self.o(sdpa(q, k, v).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize(
    "attention",
    sweep(
        [QueryIsRead, OtherKeys, SharedWeight, NormOverAll, EditedInput, EditedQuery],
        quick=[QueryIsRead, SharedWeight, EditedInput, NormOverAll],
    ),
)
def test_not_merged(attention: type[nn.Module]) -> None:
    model = vit(attention)
    graph = ExportedGraph(export_model(model, (IMAGE,)))
    assert MergeProjections()(graph).fired == 0
    assert_close(jetvit.optimize(model, IMAGE)(IMAGE), model(IMAGE))
    assert_close(compiled(model)(IMAGE), model(IMAGE))


def test_a_shared_block_is_not_merged() -> None:
    """Its weights are read twice: one merged copy a run would be two."""
    from tests.zoo.handwritten import SharedBlockViT

    _, fired = merged(randomize(SharedBlockViT(SeparateAttention, depth=1)))
    assert fired == 0


class TwoInOne(nn.Module):
    """Two attentions in one module: their merged weights need two names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for start in (0, 3):
            q, k, v = (
                layer(x).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2) for layer in self.layers[start : start + 3]
            )
            x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x


def test_two_attentions_in_one_module() -> None:
    graph, fired = merged(vit(TwoInOne))
    assert fired == 4
    assert sum("merged_qkv.weight" in name for name in graph.program().state_dict) == 4


def test_merged_after_a_plan() -> None:
    """The three products are read off the operands of the operator."""
    _, inputs, program = exported("separate_unfused")
    plan = plan_of(jetvit.find_attention(program), ALTERNATING)
    graph, fired = rewrite(program, plan)
    assert fired["merge-projections"] == 2
    assert_close(graph.program().module()(*inputs[0]), planned(program, inputs, plan))


class TokenFirst(SeparateAttention):
    """Projections of [token, batch, dim], whose heads are folded into the batch, as `bmm` takes them."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        n, b, _ = x.shape
        q, k, v = (layer(x).view(n, b * HEADS, HEAD_DIM).transpose(0, 1) for layer in (self.q, self.k, self.v))
        out = torch.bmm((torch.bmm(q, k.mT) * HEAD_DIM**-0.5).softmax(-1), v)
        return self.o(out.transpose(0, 1).reshape(n, b, DIM)).transpose(0, 1)


@pytest.mark.parametrize("choices", [None, ALTERNATING], ids=["full", "planned"])
def test_merged_once_the_views_are_straight(choices: tuple[jetvit.Choice, ...] | None) -> None:
    """A view that merges batch and heads would copy a part of a wider product; it is gone by then."""
    model = vit(TokenFirst)
    program = export_model(model, (IMAGE,))
    plan = plan_of(jetvit.find_attention(program), choices) if choices else None
    graph, fired = rewrite(program, plan)
    assert fired["merge-projections"] == 2
    expected = planned(program, ((IMAGE,), {}), plan) if plan is not None else model(IMAGE)
    assert_close(graph.program().module()(IMAGE), expected)


@pytest.mark.parametrize("freeze", [False, True])
def test_on_the_dynamo_road_only_if_frozen(freeze: bool) -> None:
    """The weights are inputs there, shared by every instance of the class."""
    fired, linears = [], []

    def backend(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graph = capture_dynamo(gm, inputs, freeze)
        fired.append({record.name: record.fired for record in rewrite_graph(graph).records}["merge-projections"])
        linears.append(count(graph.module, aten.linear.default))
        return graph.module

    model = vit()
    assert_close(torch.compile(model, backend=backend)(IMAGE), model(IMAGE))
    assert fired == [2 if freeze else 0]
    assert linears == [8 if freeze else 12]


def test_mixed_dtypes_are_not_merged() -> None:
    model = vit()
    state = copy.deepcopy(model.state_dict())
    program = export_model(model, (IMAGE,))
    program.state_dict["blocks.0.attn.k.weight"] = nn.Parameter(state["blocks.0.attn.k.weight"].double())
    assert MergeProjections()(ExportedGraph(program)).fired == 1
