"""Regions: submodules on one road, flat enter and exit nodes on the other, one reading of both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx import Node

from jetvit.patterns.regions import REGION_OPERANDS, GraphView
from tests.patterns.roads import ROADS, by_dynamo, by_export, of_case
from tests.zoo import CASES
from tests.zoo.case import randomize
from tests.zoo.handwritten import scale_on_product, tiny

REGIONS = ["autocast_attention", "autocast_sdpa", "autocast_model", "no_grad_attention", "softmax_outside_autocast"]
ROAD = pytest.mark.parametrize("road", ROADS)
aten = torch.ops.aten


def view_of(name: str, road: str) -> GraphView:
    (graph,) = of_case(name, road).graphs
    return GraphView(graph.module, graph.ambient_autocast)


def calls(view: GraphView, start: str) -> list[Node]:
    return [node for node in view.nodes if str(node.target).startswith(start)]


@pytest.mark.parametrize("name", REGIONS)
@ROAD
def test_one_list_in_the_order_of_execution(name: str, road: str) -> None:
    """Every operand stands before its user, whatever region either is in; both roads run the same operators."""
    view = view_of(name, road)
    place = {node: index for index, node in enumerate(view.nodes)}
    assert len(place) == len(view.nodes)
    for node in view.nodes:
        for used in node.all_input_nodes:
            if node.target not in REGION_OPERANDS and view.resolve(used).op != "get_attr":
                assert place[view.resolve(used)] < place[node]
    for start in ("aten.softmax", "aten.linear", "aten.scaled_dot"):
        assert len(calls(view, start)) == len(calls(view_of(name, "export"), start))


@pytest.mark.parametrize("name", REGIONS)
@ROAD
def test_values_and_users_resolve_both_ways(name: str, road: str) -> None:
    """A value and what really yields it are one; who uses a value finds it among its operands."""
    captured, view = of_case(name, road), view_of(name, road)
    for node in view.nodes:
        source = view.resolve(node)
        assert view.resolve(source) is source
        if isinstance(value := captured.values.get(node), torch.Tensor):
            assert value is captured.values[source] or value.equal(captured.values[source])
        for user in view.users(node):
            assert source in {view.resolve(used) for used in user.all_input_nodes}
    softmaxes = calls(view, "aten.softmax") or calls(view, "aten.scaled_dot")
    assert all(view.users(node) for node in softmaxes)


@pytest.mark.parametrize("name", [name for name in REGIONS if "autocast" in name])
def test_visibility(name: str) -> None:
    """A region sees what is made around it; what is made in a region is not seen from outside."""
    view = view_of(name, "export")
    assert len(view.entrances) >= 1
    top = view.module.graph
    for region, call in view.entrances.items():
        inner = next(node for node in region.nodes if node.op == "call_function")
        assert view.visible(inner, region)
        assert view.visible(call, region)
        assert not view.visible(inner, top)
        for placeholder in (node for node in region.nodes if node.op == "placeholder"):
            outer = view.resolve(placeholder)
            assert outer.graph is not region
            assert view.visible(outer, region)
            assert view.alias_in(outer, region) is placeholder
    assert view.alias_in(next(iter(top.nodes)), top) is None


def with_gradients(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.enable_grad():
        return scale_on_product(q, k, v)


def test_gradient_region() -> None:
    """A change of the gradient mode is a region as well."""
    captured = by_export(randomize(tiny(with_gradients)()), *CASES["sdpa"].inputs())
    assert len(GraphView(captured.graphs[0].module).entrances) == 2
    assert len(captured.sites) == 2
    for attention in captured.attentions:
        attention.assert_true()


def test_no_regions_by_dynamo() -> None:
    assert not view_of("autocast_model", "dynamo").entrances


@pytest.mark.parametrize(
    ("name", "start", "dtype"),
    [
        ("autocast_attention", "aten.softmax", torch.bfloat16),
        ("autocast_attention", "aten.linear", None),
        ("autocast_model", "aten.softmax", torch.bfloat16),
        ("autocast_model", "aten.linear", torch.bfloat16),
        ("softmax_outside_autocast", "aten.softmax", None),
        ("softmax_outside_autocast", "aten.linear", torch.bfloat16),
        ("no_grad_attention", "aten.softmax", None),
    ],
)
@ROAD
def test_autocast_at_a_node(name: str, start: str, dtype: torch.dtype | None, road: str) -> None:
    """The innermost region counts, and it ends where it ends."""
    view = view_of(name, road)
    nodes = calls(view, start)
    assert nodes
    assert {view.autocast_dtype(node, "cpu") for node in nodes} == {dtype}
    assert {view.autocast_dtype(node, "cuda") for node in nodes} == {None}


def test_ambient_autocast_holds_everywhere_but_where_it_is_switched_off() -> None:
    case = CASES["softmax_outside_autocast"]
    with torch.autocast("cpu", torch.float16):
        captured = by_dynamo(CASES["sdpa"].build(), *CASES["sdpa"].inputs())
        inside = by_dynamo(case.build(), *case.inputs())
    view = GraphView(captured.graphs[0].module, captured.graphs[0].ambient_autocast)
    assert {view.autocast_dtype(node, "cpu") for node in calls(view, "aten.linear")} == {torch.float16}
    view = GraphView(inside.graphs[0].module, inside.graphs[0].ambient_autocast)
    assert {view.autocast_dtype(node, "cpu") for node in calls(view, "aten.linear")} == {torch.bfloat16}
    assert {view.autocast_dtype(node, "cpu") for node in calls(view, "aten.softmax")} == {None}


def test_dead_nodes_are_left_out() -> None:
    (graph,) = of_case("sdpa", "export").graphs
    x = next(node for node in graph.module.graph.nodes if node.op == "call_function")
    with graph.module.graph.inserting_after(x):
        dead = graph.module.graph.call_function(aten.relu.default, (x,))
    try:
        assert dead not in GraphView(graph.module).nodes
        assert dead not in GraphView(graph.module).users(x)
    finally:
        graph.module.graph.erase_node(dead)
