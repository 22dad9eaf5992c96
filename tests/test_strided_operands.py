"""In what comes out, attention reads the products that make q, k and v, and the next product its result, in place.

Between a product and `jetvit::` operators only views stand: no permutation and no copy. Where a graph owns its weights,
q, k and v come from one product. What cannot be so is listed in `PERMUTED`, with the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import jetvit
from jetvit.cost_model import Choice
from jetvit.passes.frontends.capture import capture_dynamo, export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.pipeline import RewriteOptions, rewrite
from jetvit.patterns.regions import GraphView
from tests.passes.models import LINEAR, WINDOW, assert_close, aten, exported, plan_of, planned, sites_of
from tests.patterns.roads import no_fast_path
from tests.zoo import CASES, Case, hf
from tests.zoo.case import image_inputs
from tests.zoo.quick import sweep

PRODUCTS = {aten.linear.default, aten.addmm.default, aten.matmul.default, aten.mm.default}
VIEWS = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.select.int,
    aten.slice.Tensor, aten.unbind.int, aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default,
    operator.getitem,
}  # fmt: skip
TURNS = {aten.permute.default, aten.transpose.int}
COMPUTED = {"qk_norm": {aten.layer_norm.default}, "autocast": {aten.to.dtype}}  # what a model itself puts between
COVERING = Choice("window", window=(64, 64))
BY_PAIRS = "its rotation by pairs stays in the graph, on heads before tokens"
TOKEN_FIRST = "its residual stream is [token, batch, dim]"


@dataclass(frozen=True)
class Permuted:
    """What still reads through permutations, no copy, and why: some of "q", "k", "v" and "out"."""

    sides: str
    why: str
    turns: int = 1
    roads: str = "export dynamo"


PERMUTED = {
    "timm_eva02_fused": Permuted("q k", BY_PAIRS),
    "rope_interleaved": Permuted("q k", BY_PAIRS),
    "seq_first_mha": Permuted("q k v", TOKEN_FIRST),
    "seq_first_bmm": Permuted("q k v out", TOKEN_FIRST),
    "autocast_sdpa": Permuted("out", "its region gives the result out in the model's own order", 2, "export"),
}
NAMES = (
    "hf_vit_sdpa", "hf_deit_sdpa", "hf_dinov2_sdpa", "hf_dinov2_registers_eager", "hf_dinov3_sdpa", "hf_siglip_eager",
    "hf_depth_anything_sdpa", "timm_vit_fused", "timm_vit_qk_norm_unfused", "timm_dinov3_fused", "timm_eva02_fused",
    "torchvision_vit", "sdpa", "dinov2_repo", "separate_unfused", "head_major", "chunk", "split",
    "headless", "scale_on_product", "bmm", "mha", "rope_half", "rope_interleaved",
    "seq_first_mha", "seq_first_bmm", "autocast_model", "autocast_sdpa", "no_grad_model", "weights_returned",
)  # fmt: skip
QUICK = (
    "hf_dinov3_sdpa", "timm_vit_fused", "timm_eva02_fused", "torchvision_vit", "separate_unfused", "head_major",
    "chunk", "split", "headless", "bmm", "mha", "rope_half", "seq_first_mha", "seq_first_bmm", "autocast_sdpa",
)  # fmt: skip
BY_DYNAMO = (
    "hf_dinov3_sdpa", "timm_vit_fused", "timm_eva02_fused", "separate", "bmm", "mha", "seq_first_bmm",
    "autocast_sdpa",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.no_grad(), no_fast_path():
        yield


def beit() -> Case:
    """BEiT without its relative-position bias, which is an attention like any other; k has no bias."""
    return Case(
        "hf_beit_without_bias",
        lambda: hf.model("BeitModel", "BeitConfig", "sdpa", **hf.SHAPE),
        inputs=image_inputs((32, 32)),
        size=(32, 32),
        oblong=None,
        sites=2,
        num_heads=2,
        head_dim=16,
        grid=lambda size: (size[0] // 8, size[1] // 8),
        extra_before=1,
    )


# --- what stands between ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """The nodes between an attention and a product that are no views, and the product; None for another source."""

    between: tuple[Node, ...]
    product: Node | None


def operators(view: GraphView) -> list[Node]:
    return [node for node in view.nodes if str(node.target).startswith("jetvit.")]


def is_view(node: Node) -> bool:
    """True for a view; a `reshape` is one if the strides of what it reads allow it."""
    if node.target in (aten.view.default, aten.reshape.default, aten.flatten.using_ints):
        try:
            node.args[0].meta["val"].view(node.meta["val"].shape)
        except (RuntimeError, ValueError):
            return False
    return node.target in VIEWS


def way_back(node: Node, view: GraphView) -> Way:
    between: list[Node] = []
    node = view.resolve(node)
    while node.target not in PRODUCTS:
        if not is_view(node):
            between.append(node)
        if node.target not in (*VIEWS, *TURNS, *set().union(*COMPUTED.values())):
            return Way(tuple(between[:-1]), None)
        node = view.resolve(node.args[0])
    return Way(tuple(between), node)


def way_on(node: Node, view: GraphView) -> Way:
    between: list[Node] = []
    while True:
        (node,) = view.users(node)
        if node.target in PRODUCTS:
            return Way(tuple(between), node)
        if not is_view(node):
            between.append(node)


def check(module: GraphModule, name: str, road: str, one_product: bool, sites: int) -> None:
    """The contract, at every operator of a graph."""
    view = GraphView(module)
    listed = PERMUTED.get(name)
    allowed = dict.fromkeys(listed.sides.split(), listed.turns) if listed is not None and road in listed.roads else {}
    computed = set().union(*(targets for part, targets in COMPUTED.items() if part in name))
    permuted = set()
    found = operators(view)
    assert len(found) == sites
    for attention in found:
        ways = {role: way_back(operand, view) for role, operand in zip("qkv", attention.args[:3], strict=True)}
        products = {way.product for way in ways.values()}
        ways["out"] = way_on(attention, view)
        for role, way in ways.items():
            turns = [node for node in way.between if node.target in TURNS]
            where = f"{role} of {attention}: {way.between}"
            assert len(turns) <= allowed.get(role, 0), where
            assert {node.target for node in way.between} <= TURNS | computed, where
            assert way.product is not None or role in allowed, where
            permuted |= {role} if turns else set()
        if one_product:
            assert len(products - {None}) == 1, f"q, k and v of {attention} come from {products}"
        assert all(operand.meta["val"].stride(-1) == 1 for operand in attention.args[:3])
    assert permuted == set(allowed), "the list of what is permuted is out of date"


# --- torch.export -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sweep(NAMES, quick=QUICK))
def test_by_export(name: str) -> None:
    """One block with window and one with linear attention."""
    _, inputs, program = exported(name)
    plan = plan_of(jetvit.find_attention(program), [WINDOW, LINEAR])
    optimized = jetvit.optimize(program, plan=plan)
    check(optimized.graph_module, name, "export", one_product=True, sites=CASES[name].sites)
    close = 1e-2 if "autocast" in name else 1e-5
    assert_close(optimized.module()(*inputs[0], **inputs[1]), planned(program, inputs, plan), close)


def test_beit_without_bias() -> None:
    case = beit()
    model, inputs = case.build(), case.inputs()
    program = export_model(model, *inputs)
    plan = plan_of(jetvit.find_attention(program), [WINDOW, LINEAR])
    optimized = jetvit.optimize(program, plan=plan)
    check(optimized.graph_module, case.name, "export", one_product=True, sites=2)
    assert_close(optimized.module()(*inputs[0]), planned(program, inputs, plan))


@pytest.mark.parametrize("name", ["hf_dinov3_eager", "timm_vit_fused", "mha"])
def test_the_operator_for_full_attention(name: str) -> None:
    """It takes the place of SDPA without a plan, with the same contract, and gives what the eager model gives."""
    model, inputs, program = exported(name)
    graph = ExportedGraph(program)
    rewrite(graph, options=RewriteOptions(operator=True))
    check(graph.module, name, "export", one_product=True, sites=CASES[name].sites)
    assert_close(graph.program().module()(*inputs[0], **inputs[1]), model(*inputs[0], **inputs[1]))


OPEN = ("hf_dinov3_sdpa", "timm_vit_fused", "separate", "bmm", "mha", "head_major")


@pytest.mark.parametrize("name", sweep(OPEN, quick=["timm_vit_fused", "separate"]))
def test_open_sizes_by_export(name: str) -> None:
    """At another batch and size, against the eager model: a window that covers the grid is full attention."""
    case = CASES[name]
    model, (args, kwargs) = case.build(), case.inputs()
    program = export_model(model, args, kwargs, case.dynamic_shapes(args, kwargs))
    plan = plan_of(jetvit.find_attention(program), [COVERING])
    optimized = jetvit.optimize(program, plan=plan)
    check(optimized.graph_module, name, "export", one_product=True, sites=case.sites)
    assert optimized.range_constraints == program.range_constraints
    for inputs in ((args, kwargs), case.inputs(batch=3, size=case.oblong)):
        assert_close(optimized.module()(*inputs[0], **inputs[1]), model(*inputs[0], **inputs[1]))


def test_a_saved_program(tmp_path: Any) -> None:
    """What is left of the views is what torch.export can write and read."""
    _, inputs, program = exported("timm_vit_fused")
    plan = plan_of(jetvit.find_attention(program), [WINDOW, LINEAR])
    optimized = jetvit.optimize(program, plan=plan)
    torch.export.save(optimized, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    assert_close(loaded.module()(*inputs[0]), planned(program, inputs, plan))


# --- Dynamo -----------------------------------------------------------------------------------------------------------


def backend(graphs: list[GraphModule], plan: jetvit.Plan, freeze: bool) -> Callable[..., GraphModule]:
    """The passes as a backend, which keeps what they leave."""

    def compile_(gm: GraphModule, inputs: list[Tensor]) -> GraphModule:
        graph = capture_dynamo(gm, inputs, freeze)
        rewrite(graph, plan, RewriteOptions(partial=True))
        graphs.append(graph.module)
        return graph.module

    return compile_


def by_dynamo(model: nn.Module, inputs: Any, plan: jetvit.Plan, freeze: bool = False) -> tuple[Any, GraphModule]:
    graphs: list[GraphModule] = []
    compiled = torch.compile(model, backend=backend(graphs, plan, freeze))
    result = compiled(*inputs[0], **inputs[1])
    (graph,) = graphs
    return result, graph


@pytest.mark.parametrize("name", sweep(BY_DYNAMO, quick=["timm_eva02_fused", "separate", "mha", "seq_first_bmm"]))
def test_by_dynamo(name: str) -> None:
    model, inputs, program = exported(name)
    plan = plan_of(jetvit.find_attention(program), [WINDOW, LINEAR])
    result, graph = by_dynamo(model, inputs, plan)
    check(graph, name, "dynamo", one_product=False, sites=CASES[name].sites)
    assert_close(result, planned(program, inputs, plan), 1e-2 if "autocast" in name else 1e-5)


@pytest.mark.parametrize("name", ["hf_dinov3_sdpa", "separate"])
def test_one_product_where_the_weights_are_frozen(name: str) -> None:
    model, inputs, program = exported(name)
    plan = plan_of(jetvit.find_attention(program), [WINDOW])
    result, graph = by_dynamo(model, inputs, plan, freeze=True)
    check(graph, name, "dynamo", one_product=True, sites=CASES[name].sites)
    assert_close(result, planned(program, inputs, plan))


@pytest.mark.parametrize("name", sweep(["bmm", "separate"], quick=["separate"]))
def test_open_sizes_by_dynamo(name: str) -> None:
    case = CASES[name]
    model, (args, kwargs) = case.build(), case.inputs()
    plan = plan_of(sites_of(model, *args), [COVERING])
    for dim in (0, 2, 3):
        torch._dynamo.mark_dynamic(args[0], dim)
    graphs: list[GraphModule] = []
    compiled = torch.compile(model, backend=backend(graphs, plan, freeze=False))
    for inputs in ((args, kwargs), case.inputs(batch=3, size=case.oblong)):
        assert_close(compiled(*inputs[0]), model(*inputs[0]))
    assert len(graphs) == 1
    check(graphs[0], name, "dynamo", one_product=False, sites=case.sites)
