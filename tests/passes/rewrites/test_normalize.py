"""What does nothing at inference goes; what does something stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.rewrites.normalize import Normalize
from tests.passes.models import assert_close, aten, count

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def normalized(function: Callable[[Tensor], Tensor], **shapes: object) -> tuple[ExportedGraph, int]:
    graph = ExportedGraph(export_model(Function(function), (X,), **shapes))
    fired = Normalize()(graph).fired
    assert Normalize()(graph).fired == 0
    return graph, fired


@pytest.mark.parametrize(
    ("function", "target"),
    [
        (lambda x: F.dropout(x, 0.5, training=False) + 1, aten.dropout.default),
        (lambda x: F.dropout(x, 0.0, training=True) + 1, aten.dropout.default),
        (lambda x: torch.ops.aten.to.dtype(x, torch.float32) + 1, aten.to.dtype),
        (lambda x: torch.ops.aten.contiguous(x) + 1, aten.contiguous.default),
    ],
    ids=["dropout-off", "dropout-zero", "to", "contiguous"],
)
def test_removed(function: Callable[[Tensor], Tensor], target: object) -> None:
    graph, _ = normalized(function)
    assert count(graph.module, target) == 0
    assert_close(graph.program().module()(X), X + 1)


def test_assertions_on_metadata_are_removed() -> None:
    program = export_model(Function(lambda x: x.double().float() * 2), (X,))
    assert count(program.graph_module, aten._assert_tensor_metadata.default) > 0
    graph, fired = normalized(lambda x: x.double().float() * 2)
    assert fired == count(program.graph_module, aten._assert_tensor_metadata.default)
    assert count(graph.module, aten._assert_tensor_metadata.default) == 0


@pytest.mark.parametrize(
    ("function", "target", "times"),
    [
        (lambda x: F.dropout(x, 0.5, training=True), aten.dropout.default, 1),
        (lambda x: x.half().float(), aten.to.dtype, 2),
        (lambda x: x.transpose(0, 1).contiguous() + 1, aten.contiguous.default, 1),
        (lambda x: torch.ops.aten.to.dtype(x, torch.float32, False, True).add_(1), aten.to.dtype, 1),  # a copy
        (lambda x: x.contiguous(memory_format=torch.contiguous_format).clone(), aten.clone.default, 1),
    ],
    ids=["dropout-on", "casts", "transposed", "copy", "clone"],
)
def test_kept(function: Callable[[Tensor], Tensor], target: object, times: int) -> None:
    graph, _ = normalized(function)
    assert count(graph.module, target) == times


def test_contiguous_before_a_view_is_kept() -> None:
    """The strides are those of the example: an image in channels-last memory has others."""

    def flat(x: Tensor) -> Tensor:
        return torch.ops.aten.contiguous(x).view(-1)

    graph, _ = normalized(flat)
    strided = torch.randn(2, 4, 3).transpose(1, 2)
    assert_close(graph.program().module()(strided), strided.reshape(-1))


def test_contiguous_of_an_open_size_is_kept() -> None:
    graph, _ = normalized(lambda x: torch.ops.aten.contiguous(x) + 1, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert_close(graph.program().module()(X), X + 1)


def test_regions_are_normalised() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.dropout(x @ x.mT, 0.5, training=False) + 1

    graph, fired = normalized(function)
    assert fired >= 1
    assert count(graph.module, aten.dropout.default) == 0
    assert_close(graph.program().module()(X), function(X))
