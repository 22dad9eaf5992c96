"""Values come into regions through their operands, once, and nodes get the shapes and dtypes that they have there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.insertion import Insertion
from jetvit.passes.graph.regions import submodules
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns.regions import GraphView
from tests.passes.models import assert_close, aten, nodes_of


class Nested(nn.Module):
    """A product in an autocast region, in another one, beside a product outside of both."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = y.exp()
        with torch.autocast("cpu", torch.bfloat16):
            a = self.linear(x)
            with torch.autocast("cpu", enabled=False):
                b = a.float() @ a.float().mT
        return b.sum() + z.sum()


def nested(**shapes: object) -> tuple[ExportedGraph, GraphView, dict[str, Node]]:
    model = Nested()
    graph = ExportedGraph(export_model(model, (torch.ones(4, 6), torch.ones(5, 7)), **shapes))
    view = GraphView(graph.module)
    return graph, view, {node.name: node for node in nodes_of(graph.module)}


def depth(module: GraphModule) -> list[GraphModule]:
    return list(submodules(module))


def test_regions_come_inside_out() -> None:
    graph, _, _ = nested()
    modules = depth(graph.module)
    assert modules[-1] is graph.module
    assert len(modules) == 3
    assert any(node.target is aten.matmul.default for node in modules[0].graph.nodes)
    assert any(node.target is aten.linear.default for node in modules[1].graph.nodes)


def test_a_value_is_threaded_through_two_regions() -> None:
    graph, view, nodes = nested()
    insertion = Insertion(graph, nodes["matmul"], view)
    inside = insertion.bring(nodes["exp"])
    assert inside.graph is nodes["matmul"].graph
    assert inside.op == "placeholder"
    assert insertion.bring(nodes["exp"]) is inside  # no second operand
    assert insertion.bring(inside) is inside
    scaled = insertion.call(aten.mul.Tensor, nodes["matmul"].args[0], insertion.call(aten.mean.default, inside))
    nodes["matmul"].replace_input_with(nodes["matmul"].args[0], scaled)
    for module in depth(graph.module):
        module.graph.lint()
        module.recompile()
    x, y = torch.randn(4, 6), torch.randn(5, 7)
    program = graph.program()
    linear = F.linear(x.bfloat16(), *(program.state_dict[f"linear.{part}"].bfloat16() for part in ("weight", "bias")))
    a = linear.float()
    assert_close(program.module()(x, y), ((a * y.exp().mean()) @ a.mT).sum() + y.exp().sum(), 1e-5)


def test_a_value_that_is_in_the_region_already_is_taken() -> None:
    graph, view, nodes = nested()
    weight = next(node for node in graph.module.graph.nodes if graph.tensor_names.get(node) == "linear.weight")
    insertion = Insertion(graph, nodes["linear"], view)
    operands = len(view.entrances[nodes["linear"].graph].args)
    assert insertion.bring(weight) is nodes["linear"].args[1]
    assert len(view.entrances[nodes["linear"].graph].args) == operands


def test_an_open_size_in_a_region() -> None:
    graph, view, nodes = nested(dynamic_shapes=({0: torch.export.Dim.DYNAMIC}, {1: torch.export.Dim.DYNAMIC}))
    width = next(node for node in graph.module.graph.nodes if node.name == "y").meta["val"].shape[1]
    insertion = Insertion(graph, nodes["matmul"], view)
    size = insertion.size(width * 2)
    assert size.graph is nodes["matmul"].graph
    assert insertion.size(3) == 3
    scaled = insertion.call(aten.mul.Tensor, nodes["matmul"].args[0], size)
    nodes["matmul"].replace_input_with(nodes["matmul"].args[0], scaled)
    for module in depth(graph.module):
        module.recompile()
    model = Nested()
    model.load_state_dict(graph.program().state_dict)
    x, y = torch.randn(3, 6), torch.randn(5, 8)
    expected = (model(x, y) - y.exp().sum()) * 16 + y.exp().sum()
    assert_close(graph.program().module()(x, y), expected, 1e-5)


@pytest.mark.parametrize(("anchor", "dtype"), [("linear", torch.bfloat16), ("matmul", torch.float32)])
def test_the_dtype_is_that_of_the_region(anchor: str, dtype: torch.dtype) -> None:
    """A product in an autocast region has the region's dtype, though its operands have not."""
    graph, view, nodes = nested()
    weight = next(node for node in graph.module.graph.nodes if graph.tensor_names.get(node) == "linear.weight")
    insertion = Insertion(graph, nodes[anchor], view)
    inside = insertion.bring(weight)
    made = insertion.call(aten.linear.default, inside, inside)
    assert inside.meta["val"].dtype == torch.float32
    assert made.meta["val"].dtype == dtype
    assert insertion.cast(made, dtype) is made
    assert insertion.cast(made, torch.float64).meta["val"].dtype == torch.float64


def test_a_node_says_where_it_comes_from() -> None:
    graph, view, nodes = nested()
    made = Insertion(graph, nodes["linear"], view).call(aten.relu.default, nodes["linear"].args[0])
    assert made.next is nodes["linear"]
    for key in ("nn_module_stack", "stack_trace"):
        assert made.meta[key] == nodes["linear"].meta[key]
