"""The operations of captured graphs, before and after rewrites, on both dtypes and all roads of a model."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from jetvit.cost_model import Choice
from jetvit.cost_model.measuring.graph_operations import GraphOperations, graph_operations
from jetvit.cost_model.measuring.operation import Operation
from tests.passes.models import plan_of, rewrite, sites_of
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, HEAD_DIM, HEADS, SIZE, Attention, TinyViT, scale_on_product, sdpa


def of(model: nn.Module, *choices: Choice) -> GraphOperations:
    x = images(2, 3, *SIZE)
    sites = sites_of(model, x)
    graph, _ = rewrite(torch.export.export(model, (x,)), plan_of(sites, choices) if choices else None)
    return graph_operations(graph.module)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomize(TinyViT(partial(Attention, sdpa)), 0).eval()


def by_op(found: GraphOperations) -> dict[str, int]:
    counts: dict[str, int] = {}
    for operation, count in found.counted.items():
        counts[operation.op] = counts.get(operation.op, 0) + count
    return counts


def test_a_model_and_its_rewrite_differ_in_the_attention_alone(model: nn.Module) -> None:
    depth = len(model.blocks)
    before, after = of(model), of(model, Choice("window", window=(2, 3)))
    counts = by_op(before)
    assert counts["full"] == depth
    assert by_op(after) == {("window" if op == "full" else op): count for op, count in counts.items()}
    (full,) = (operation for operation in before.counted if operation.op == "full")
    (window,) = (operation for operation in after.counted if operation.op == "window")
    assert (full.batch, full.heads, full.head_dim, full.grid_h) == (2, HEADS, HEAD_DIM, 1)
    assert (window.batch, window.heads, window.head_dim) == (2, HEADS, HEAD_DIM)
    assert (window.tokens, window.window_h, window.window_w) == (full.tokens, 2, 3)
    assert window.grid_h * window.grid_w + window.extra == full.grid_w
    assert window.grid_h > 1
    products = [operation for operation in before.counted if operation.op == "gemm"]
    assert {operation.inputs for operation in products} >= {DIM}
    assert all(operation == operation.key for operation in products)


def test_attention_spelled_out_is_found_fused(model: nn.Module) -> None:
    spelled = randomize(TinyViT(partial(Attention, scale_on_product)), 0).eval()
    assert by_op(of(spelled))["full"] == len(spelled.blocks)


def test_linear_attention_has_its_convolution(model: nn.Module) -> None:
    (linear,) = (operation for operation in of(model, Choice("linear")).counted if operation.op == "linear")
    assert linear.conv_size == 0
    assert not linear.rope
    assert linear.feature_map == "relu"


def test_linear_attention_has_its_feature_map(model: nn.Module) -> None:
    found = of(model, Choice("linear", feature_map="hedgehog")).counted
    assert [operation.feature_map for operation in found if operation.op == "linear"] == ["hedgehog"]


def test_what_no_operation_stands_for_is_told() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x.exp()], dim=1).transpose(0, 1) + 1

    program = torch.export.export(Model(), (torch.randn(2, 3),))
    found = graph_operations(program.graph_module)
    assert not found.counted
    assert found.others == {"aten.exp.default": 1, "aten.cat.default": 1, "aten.add.Tensor": 1}
    assert found.launches == 3


def test_under_autocast_products_are_of_its_dtype() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.linear(x)

    program = torch.export.export(Model(), (torch.randn(2, 3, 8),))
    assert list(graph_operations(program.graph_module).counted) == [
        Operation("gemm", "bfloat16", 1, 1, 6, inputs=8, outputs=16)
    ]


def test_open_sizes_are_those_of_the_example() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(nn.Linear(8, 4), (torch.randn(5, 8),), dynamic_shapes=({0: batch},))
    (operation,) = graph_operations(program.graph_module).counted
    assert operation.rows == 5
