"""A symbolic size is computed in the graph, and gives at run time what Python's arithmetic gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Interpreter

import jetvit
from jetvit.cost_model import Choice
from jetvit.passes.frontends.capture import capture_dynamo, export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.graph.symbols import size_node
from jetvit.patterns import RewriteError
from tests.passes.models import plan_of


class Plain(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.sum() + y.sum()


def program(dynamic_shapes: Any, *shape: int) -> ExportedProgram:
    return export_model(Plain(), (torch.ones(shape), torch.ones(4, 9)), {}, dynamic_shapes)


def run(graph: ExportedGraph, node: torch.fx.Node, *inputs: Tensor) -> int:
    graph.module.graph.lint()
    interpreter = Interpreter(graph.module, garbage_collect_values=False)
    interpreter.run(*inputs)
    return interpreter.env[node]


SIZES: list[Callable[[Any, Any], Any]] = [
    lambda h, w: h,
    lambda h, w: h // 8,
    lambda h, w: (h // 8) * (w // 4) + 1,
    lambda h, w: (h + 7) // 8,
    lambda h, w: (h // 2) // 3 + h % 5,
    lambda h, w: h * w - 2 * h + 3,
    lambda h, w: -(-h // 4),
]


@pytest.mark.parametrize("number", range(len(SIZES)))
def test_expressions(number: int) -> None:
    graph = ExportedGraph(program(({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, None), 16, 24))
    h, w = next(node for node in graph.module.graph.nodes if node.name == "x").meta["val"].shape
    size = SIZES[number](h, w)
    node = size_node(graph, size)
    assert node.meta["val"].node.expr == size.node.expr
    for rows, columns in ((16, 24), (8, 4), (61, 35)):
        assert run(graph, node, torch.ones(rows, columns), torch.ones(4, 9)) == SIZES[number](rows, columns)


def test_the_same_size_is_computed_once() -> None:
    graph = ExportedGraph(program(({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, None), 16, 24))
    h, w = next(node for node in graph.module.graph.nodes if node.name == "x").meta["val"].shape
    first = size_node(graph, h // 8 * w)
    before = len(graph.module.graph.nodes)
    assert size_node(graph, (h // 8) * w) is first
    assert len(graph.module.graph.nodes) == before
    assert size_node(graph, h // 4) is not first


def test_sizes_of_two_inputs() -> None:
    graph = ExportedGraph(program(({0: Dim.DYNAMIC}, {1: Dim.DYNAMIC}), 16, 24))
    x, y = (next(node for node in graph.module.graph.nodes if node.name == name).meta["val"] for name in "xy")
    node = size_node(graph, x.shape[0] * y.shape[1])
    assert run(graph, node, torch.ones(5, 24), torch.ones(4, 7)) == 35


@pytest.mark.parametrize("dim", [lambda s: 8 * s, lambda s: s + 3, lambda s: 4 * s + 1], ids=["8s", "s+3", "4s+1"])
def test_a_symbol_inside_of_a_size(dim: Callable[[Any], Any]) -> None:
    """`8 * Dim("rows")` leaves a symbol that is itself no input's size."""
    graph = ExportedGraph(program(({0: dim(Dim("rows", min=2, max=50))}, None), dim(4), 24))
    length = next(node for node in graph.module.graph.nodes if node.name == "x").meta["val"].shape[0]
    (symbol,) = length.node.expr.free_symbols
    rows = length.node.shape_env.create_symintnode(symbol, hint=4)
    node = size_node(graph, rows + 1)
    for count in (2, 4, 11):
        assert run(graph, node, torch.ones(dim(count), 24), torch.ones(4, 9)) == count + 1


def test_a_symbol_that_no_input_has_is_refused() -> None:
    graph = ExportedGraph(program(({0: Dim.DYNAMIC}, None), 16, 24))
    other = ExportedGraph(program(({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, None), 16, 24))
    lengths = next(node for node in other.module.graph.nodes if node.name == "x").meta["val"].shape
    mine = next(node for node in graph.module.graph.nodes if node.name == "x").meta["val"].shape[0]
    foreign = next(length for length in lengths if length.node.expr != mine.node.expr)
    with pytest.raises(RewriteError, match=r"cannot be computed.*\n.*cannot be read off the size of an input"):
        size_node(graph, foreign)


def test_symbols_are_inputs_on_the_dynamo_road() -> None:
    found = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> torch.fx.GraphModule:
        graph = capture_dynamo(gm, inputs)
        tensor = next(
            node.meta["val"]
            for node in graph.module.graph.nodes
            if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
        )
        node = size_node(graph, tensor.shape[0] // 4 + tensor.shape[1])
        interpreter = Interpreter(graph.module, garbage_collect_values=False)

        def call(*arguments: Any) -> Any:
            results = interpreter.run(*arguments)
            found.append(interpreter.env[node])
            return results

        return call

    x = torch.ones(16, 24)
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.mark_dynamic(x, 1)
    function = torch.compile(lambda x: x.sin(), backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        function(x)
        function(torch.ones(9, 50))
    assert found == [28, 52]


class RoundedGrid(nn.Module):
    """MoGe's: the token grid is a rounded root, computed by way of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv, self.proj = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, image: Tensor, num_tokens: int) -> Tensor:
        height, width = image.shape[-2:]
        aspect = width / height
        rows, columns = round((num_tokens / aspect) ** 0.5), round((num_tokens * aspect) ** 0.5)
        x = F.interpolate(image, (rows * 8, columns * 8), mode="bilinear", align_corners=False)
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_size_by_way_of_floats() -> None:
    model, options = RoundedGrid().eval(), {"kwargs": {"num_tokens": 24}}
    first, second = torch.randn(1, 3, 64, 80), torch.randn(1, 3, 96, 40)
    shapes = {"image": {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, "num_tokens": None}
    sites = jetvit.find_attention(model, first, dynamic_shapes=shapes, **options)
    plan = plan_of(sites, [Choice("window", window=(2, 2))])
    optimized = jetvit.optimize(model, first, plan=plan, dynamic_shapes=shapes, **options)
    with torch.no_grad():
        for image in (first, second):
            expected = jetvit.optimize(model, image, plan=plan, **options)(image, num_tokens=24)
            torch.testing.assert_close(optimized(image, num_tokens=24), expected)


class ChosenImages(nn.Module):
    """How many images there are depends on a mask, as in ModernVBERT, which drops padding images."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv = nn.Conv2d(3, 32, 16, 16), nn.Linear(32, 96)

    def forward(self, image: Tensor, keep: Tensor) -> Tensor:
        x = self.patches(image[keep]).flatten(2).mT
        q, k, v = (each.view(*x.shape[:2], -1, 16).transpose(1, 2) for each in self.qkv(x).split(32, -1))
        x = F.scaled_dot_product_attention(q, k, v).reshape(x.shape[0], -1, *q.shape[2:])
        return x.transpose(1, 2).reshape(x.shape[0], -1)


@pytest.mark.parametrize("window", [None, (2, 2)])
def test_a_number_of_images_that_depends_on_values(window: tuple[int, int] | None) -> None:
    model, image = ChosenImages().eval(), torch.randn(3, 3, 64, 96)
    sites = jetvit.find_attention(model, image, torch.tensor([True, False, True]))
    plan = plan_of(sites, [Choice("window", window=window)]) if window else None
    optimized = jetvit.optimize(model, image, torch.tensor([True, False, True]), plan=plan)
    for keep in ([False, True, False], [True, True, True]):
        mask = torch.tensor(keep)
        expected = model(image, mask)
        if window:
            assert not torch.allclose(optimized(image, mask), expected)
            alone = torch.eye(3, dtype=torch.bool)
            expected = torch.cat([optimized(image, each) for each in alone[mask]])
        torch.testing.assert_close(optimized(image, mask), expected)
