"""Which memory a node looks at, and whether somebody writes to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns.regions import GraphView
from jetvit.patterns.storage import relies_on_strides, storage, written


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def view_of(function: Callable[[Tensor], Tensor]) -> tuple[GraphView, dict[str, Node]]:
    graph = ExportedGraph(export_model(Function(function), (torch.ones(4, 6),)))
    view = GraphView(graph.module)
    return view, {node.name: node for node in view.nodes}


def clone_then(edit: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        edit(y)
        return y * 2

    return function


@pytest.mark.parametrize(
    "edit",
    [
        lambda y: y.add_(1),
        lambda y: y.view(-1).add_(1),
        lambda y: y[0].mul_(2),
        lambda y: y.transpose(0, 1)[1:].zero_(),
        lambda y: y.unbind(0)[2].fill_(1),
        lambda y: y.chunk(2, dim=1)[1].copy_(torch.ones(4, 3)),
        lambda y: y.reshape(2, 12).sub_(1),
        lambda y: y.detach().exp_(),
        lambda y: torch.add(y, 1, out=y),
        lambda y: y.__setitem__((slice(None), 0), 0),
    ],
)
def test_writes_are_found_through_views(edit: Callable[[Tensor], object]) -> None:
    view, nodes = view_of(clone_then(edit))
    assert written(view) == {nodes["clone"]}


def test_reads_are_no_writes() -> None:
    view, nodes = view_of(lambda x: (x.clone().view(-1)[2:] + 1).relu())
    assert written(view) == set()
    assert {storage(nodes[name], view) for name in ("clone", "view", "slice_1")} == {nodes["clone"]}
    assert storage(nodes["add"], view) is nodes["add"]


def test_writes_in_a_region_are_writes() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.clone()
        with torch.autocast("cpu", torch.bfloat16):
            y.mul_(2)
            z = x @ y.mT
        return z + y.sum()

    view, _ = view_of(function)
    (clone,) = written(view)
    assert clone.target is torch.ops.aten.clone.default
    assert clone.graph is view.module.graph


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda y: y.view(-1), True),
        (lambda y: y.transpose(0, 1)[1:].transpose(0, 1).view(4, 1, 5), True),
        (lambda y: y.reshape(-1).view(2, 12), False),
        (lambda y: y.reshape(-1) + y.sum(), False),
        (lambda y: (y + 1).view(-1), False),
    ],
)
def test_who_relies_on_strides(read: Callable[[Tensor], Tensor], expected: bool) -> None:
    _, nodes = view_of(lambda x: read(x.clone()))
    assert relies_on_strides(nodes["clone"]) is expected
