"""Rotations go into the operators where the patterns say so, from one pair of tables, and the numbers stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

import jetvit
from jetvit.cost_model import Plan
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.base import Pass
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.pipeline import RewriteOptions, passes, run_pipeline
from jetvit.passes.rewrites.apply_plan import ApplyPlan
from jetvit.passes.rewrites.fuse_attention import FuseAttention
from jetvit.patterns import find_sites
from jetvit.patterns.operator_args import arguments_of
from jetvit.patterns.regions import GraphView
from tests.passes.models import (
    FULL,
    LINEAR,
    WINDOW,
    assert_close,
    aten,
    by_road,
    compiled,
    count,
    error,
    exported,
    nodes_of,
    plan_of,
    planned,
)
from tests.patterns.test_rope_tables import (
    AXIAL,
    InAutocast,
    InRegion,
    TableViT,
    TokensFirst,
    edited,
    of_angles,
    plain,
)
from tests.zoo import CASES
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import SIZE, RopeAttention
from tests.zoo.quick import sweep

HALF = ["hf_dinov3_sdpa", "hf_dinov3_eager", "timm_dinov3_fused", "timm_dinov3_unfused", "rope_half"]
CHOICES = {"window": WINDOW, "linear": LINEAR, "full": FULL}
IMAGE = images(2, 3, *SIZE)


def sequence(plan: Plan | None = None) -> list[Pass]:
    """The pipeline as it is for a GPU: what a plan leaves full becomes an operator as well."""
    return passes(plan, RewriteOptions(operator=True))


def rewritten(program: ExportedProgram, plan: Plan | None = None) -> ExportedProgram:
    """The program after that pipeline, a second run of which changes nothing."""
    graph = ExportedGraph(program)
    run_pipeline(graph, sequence(plan))
    again = plan if find_sites(graph).rewritten else None  # merged projections look like another model's
    assert not sum(record.fired for record in run_pipeline(graph, sequence(again)))
    return graph.program()


def operators(module: nn.Module) -> list[Node]:
    return [node for node in nodes_of(module) if str(node.target).startswith("jetvit.")]


def tables(module: nn.Module) -> set[tuple[Node, Node]]:
    """The tables that the operators of a graph are given."""
    view = GraphView(module)
    return {
        (view.resolve(arguments.rope_y), view.resolve(arguments.rope_x))
        for arguments in map(arguments_of, operators(module))
    }


def assert_folded(module: nn.Module) -> None:
    """One pair of tables for all operators, and nothing in the graph that rotates."""
    ((rope_y, rope_x),) = tables(module)
    for table in (rope_y, rope_x):
        assert table.meta["val"].dim() == 3
        assert table.meta["val"].dtype == torch.float32
    assert count(module, aten.neg.default) == 0


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "choice"),
    sweep(
        product(HALF, CHOICES),
        quick=[
            ("hf_dinov3_sdpa", "window"),
            ("hf_dinov3_eager", "linear"),
            ("timm_dinov3_fused", "full"),
            ("timm_dinov3_unfused", "window"),
            ("rope_half", "linear"),
        ],
    ),
)
def test_offline(name: str, choice: str) -> None:
    """The tables of a fixed size are constants."""
    model, inputs, program = exported(name)
    plan = plan_of(jetvit.find_attention(program), [CHOICES[choice]])
    result = rewritten(program, plan)
    assert_folded(result.graph_module)
    assert all(table.op == "placeholder" for pair in tables(result.graph_module) for table in pair)
    assert len(operators(result.graph_module)) == CASES[name].sites
    assert_close(result.module()(*inputs[0], **inputs[1]), planned(model, inputs, plan))


@pytest.mark.parametrize(
    ("name", "choice"), sweep(product(["hf_dinov3_sdpa", "rope_half"], CHOICES), quick=[("hf_dinov3_sdpa", "window")])
)
def test_open_sizes(name: str, choice: str) -> None:
    """One graph for every size of image and batch; the tables are computed in it."""
    case = CASES[name]
    model, inputs = case.build(), case.inputs()
    plan = plan_of(jetvit.find_attention(model, *inputs[0], kwargs=inputs[1]), [CHOICES[choice]])
    result = rewritten(export_model(model, *inputs, case.dynamic_shapes(*inputs)), plan)
    assert_folded(result.graph_module)
    module = result.module()
    for other in (inputs, case.inputs(batch=3, size=case.oblong), case.inputs(batch=4, size=(64, 40))):
        assert_close(module(*other[0], **other[1]), planned(model, other, plan))


@pytest.mark.parametrize(
    ("name", "choice"),
    sweep(
        product(["hf_dinov3_sdpa", "timm_dinov3_fused", "rope_half"], ["window", "linear"]),
        quick=[("hf_dinov3_sdpa", "window"), ("rope_half", "linear")],
    ),
)
def test_dynamo(name: str, choice: str) -> None:
    model, inputs, _ = exported(name)
    plan = plan_of(jetvit.find_attention(model, *inputs[0], kwargs=inputs[1]), [CHOICES[choice]])
    expected = planned(model, inputs, plan)
    for freeze in (False, True):
        graphs: list[GraphModule] = []
        torch._dynamo.reset()
        result = compiled(model, keep(graphs), plan=plan, freeze=freeze)(*inputs[0], **inputs[1])
        assert_close(result, expected)
        assert len(graphs) == 1
        assert_folded(graphs[0])
        constant = all(table.op in ("placeholder", "get_attr") for pair in tables(graphs[0]) for table in pair)
        assert constant == freeze


def keep(graphs: list[GraphModule]) -> Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]:
    """An inner backend that notes what it is given."""

    def inner(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        return gm.forward

    return inner


@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_dynamo_with_open_sizes(inner: str) -> None:
    """One graph, and no guard on a size."""
    case = CASES["hf_dinov3_sdpa"]
    model, inputs = case.build(), case.inputs()
    plan = plan_of(jetvit.find_attention(model, *inputs[0], kwargs=inputs[1]), [WINDOW, LINEAR])
    function = compiled(model, inner, plan=plan)
    for position, other in enumerate((inputs, case.inputs(batch=3, size=(48, 40)), case.inputs(4, (64, 96)))):
        for dim in (0, 2, 3):
            torch._dynamo.mark_dynamic(other[0][0], dim)
        with torch._dynamo.config.patch(error_on_recompile=position > 0):
            assert_close(function(*other[0], **other[1]), planned(model, other, plan))


@pytest.mark.parametrize("name", sweep(AXIAL, quick=["packed", "for_every_head", "by_axis"]))
def test_every_way_to_write_axial_tables(name: str) -> None:
    model = randomize(TableViT(AXIAL[name]))
    inputs = ((IMAGE,), {})
    plan = plan_of(jetvit.find_attention(model, IMAGE), [WINDOW, FULL])
    result = rewritten(export_model(model, (IMAGE,)), plan)
    assert_folded(result.graph_module)
    assert_close(result.module()(IMAGE), planned(model, inputs, plan))


@pytest.mark.parametrize("road", sweep(["export", "dynamo"], quick=["export"]))
def test_tokens_before_heads(road: str) -> None:
    model = randomize(TableViT(of_angles(plain), TokensFirst))
    plan = plan_of(jetvit.find_attention(model, IMAGE), [LINEAR, WINDOW])
    result = by_road(road, model, ((IMAGE,), {}), plan)
    assert_close(result(IMAGE), planned(model, ((IMAGE,), {}), plan))
    if road == "export":
        assert_folded(result.graph_module)


# --- dtypes -----------------------------------------------------------------------------------------------------------


@cache
def of_dtype(dtype: torch.dtype) -> tuple[nn.Module, ExportedProgram]:
    """DINOv3 in a dtype, and its program with open sizes."""
    case = CASES["hf_dinov3_sdpa"]
    model, inputs = case.build().to(dtype), case.inputs(dtype=dtype)
    return model, export_model(model, *inputs, case.dynamic_shapes(*inputs))


@pytest.mark.parametrize(
    ("dtype", "choice"),
    sweep(
        product([torch.bfloat16, torch.float16, torch.float64], CHOICES),
        quick=[(torch.bfloat16, "window")],
    ),
)
def test_other_dtypes(dtype: torch.dtype, choice: str) -> None:
    """fp64 stays exact. In half precision the tables are those that the model has rounded, and nothing else is."""
    wide = CASES["hf_dinov3_sdpa"].build().double()
    model, program = of_dtype(dtype)
    inputs = CASES["hf_dinov3_sdpa"].inputs(dtype=dtype)
    plan = plan_of(find_sites(ExportedGraph(program)), [CHOICES[choice]])
    result = rewritten(program, plan)
    (pair,) = tables(result.graph_module)
    assert {table.meta["val"].dtype for table in pair} == {torch.promote_types(dtype, torch.float32)}
    assert count(result.graph_module, aten.neg.default) == 0
    ours, unfolded = result.module()(*inputs[0], **inputs[1]), planned(model, inputs, plan)
    if dtype == torch.float64:
        assert_close(ours, unfolded, 1e-12)
        return
    exact = planned(wide, ((inputs[0][0].double(),), inputs[1]), plan)
    ours, unfolded = (
        error([x.double() for x in each.values()], [x.double() for x in exact.values()]) for each in (ours, unfolded)
    )
    assert ours < max(1.1 * unfolded, 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("choice", "road"),
    sweep(product(["window", "linear"], ["export", "dynamo"]), quick=[("window", "export"), ("linear", "dynamo")]),
)
def test_autocast(road: str, choice: str) -> None:
    """The products are in half precision, the tables in fp32, and the attention is what autocast makes of it."""
    model = randomize(TableViT(of_angles(plain), InAutocast))
    plan = plan_of(jetvit.find_attention(model, IMAGE), [CHOICES[choice]])
    result = by_road(road, model, ((IMAGE,), {}), plan)
    assert_close(result(IMAGE), planned(model, ((IMAGE,), {}), plan), 1e-2)
    if road == "export":
        (pair,) = tables(result.graph_module)
        assert {table.meta["val"].dtype for table in pair} == {torch.float32}
        assert {node.meta["val"].dtype for node in operators(result.graph_module)} == {torch.bfloat16}
        assert count(result.graph_module, aten.neg.default) == 0


@pytest.mark.parametrize(
    ("name", "road"),
    sweep(
        product(["plain", "without_autocast", "without_gradient"], ["export", "dynamo"]),
        quick=[("plain", "export"), ("without_autocast", "dynamo")],
    ),
)
def test_the_whole_model_under_autocast(road: str, name: str) -> None:
    """cos and sin come out of a region of their own."""

    class Model(TableViT):
        def forward(self, image: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(image).float()

    model = randomize(Model(AXIAL[name], InRegion if road == "dynamo" else RopeAttention))
    plan = plan_of(jetvit.find_attention(model, IMAGE), [WINDOW, LINEAR])
    result = by_road(road, model, ((IMAGE,), {}), plan)
    assert_close(result(IMAGE), planned(model, ((IMAGE,), {}), plan), 2e-2)
    if road == "export":
        assert len(tables(result.graph_module)) == 1
        assert count(result.graph_module, aten.neg.default) == 0


# --- the graph --------------------------------------------------------------------------------------------------------


def test_passes_share_the_tables() -> None:
    """The plan's sites and those that stay full, at a size that is not known, where nothing is folded."""
    case = CASES["hf_dinov3_sdpa"]
    inputs = case.inputs()
    program = export_model(case.build(), *inputs, case.dynamic_shapes(*inputs))
    graph = ExportedGraph(program)
    before = count(graph.module, aten.stack.default)
    ApplyPlan(plan_of(find_sites(graph), [WINDOW, FULL]))(graph)
    FuseAttention(operator=True)(graph)
    assert len(operators(graph.module)) == 2
    assert len(tables(graph.module)) == 1
    assert count(graph.module, aten.stack.default) == before + 2
    graph.module.graph.lint()


def test_what_else_reads_the_rotated_queries_still_does() -> None:
    class Read(RopeAttention):
        def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
            q, k, v = self.split(x)
            q, k = self.rope(q, sin, cos), self.rope(k, sin, cos)
            return self.proj(self.attend(q, k, v).transpose(1, 2).reshape(x.shape)) + q.mean((1, 2, 3), True)[..., 0]

    model = randomize(TableViT(of_angles(plain), Read))
    plan = plan_of(jetvit.find_attention(model, IMAGE), [WINDOW])
    result = rewritten(export_model(model, (IMAGE,)), plan)
    assert len(tables(result.graph_module)) == 1
    assert count(result.graph_module, aten.neg.default) == 2  # q of both blocks, k of none
    assert_close(result.module()(IMAGE), planned(model, ((IMAGE,), {}), plan))


@pytest.mark.parametrize(
    ("name", "road"),
    sweep(
        product(["rope_interleaved", "timm_eva02_fused"], ["export", "dynamo"]),
        quick=[("rope_interleaved", "export"), ("timm_eva02_fused", "dynamo")],
    ),
)
def test_pairs_stay_in_the_graph(road: str, name: str) -> None:
    model, inputs, program = exported(name)
    plan = plan_of(jetvit.find_attention(program), [WINDOW, LINEAR])
    assert_close(by_road(road, model, inputs, plan)(*inputs[0], **inputs[1]), planned(model, inputs, plan))
    for each in (plan, None):
        result = rewritten(program, each)
        assert count(result.graph_module, aten.neg.default) == 4
        assert all(node.meta["val"].shape == (0,) for pair in tables(result.graph_module) for node in pair)


@pytest.mark.parametrize("road", ["export", "dynamo"])
def test_tables_that_are_written_to_stay_in_the_graph(road: str) -> None:
    model = randomize(TableViT(edited))
    plan = plan_of(jetvit.find_attention(model, IMAGE), [WINDOW, LINEAR])
    result = by_road(road, model, ((IMAGE,), {}), plan)
    assert_close(result(IMAGE), planned(model, ((IMAGE,), {}), plan))
