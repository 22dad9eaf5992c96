"""Exact: results stand in memory as the model's own do, so that code behind the graph may view them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.patterns.sizes import same
from jetvit.torch_private import OpOverload, pytree

aten = torch.ops.aten


def keep_result_strides(graph: RewritableGraph, expected: Sequence[Any]) -> int:
    """Copy the results whose strides have changed into the order in memory that they had; returns how many.

    Args:
        graph: a rewritten graph.
        expected: the recorded values of its results before the first pass.
    """
    output = graph.module.graph.output_node()
    moved: dict[Node, Node] = {}
    for node, before in zip(pytree.tree_leaves(output.args[0]), expected, strict=True):
        now = node.meta.get("val") if isinstance(node, Node) else None
        if not (isinstance(before, Tensor) and isinstance(now, Tensor)) or _same_strides(before, now):
            continue
        if (order := _order(before)) is not None:
            moved[node] = _in_order(output, node, order)
    if moved:
        output.args = torch.fx.map_arg(output.args, lambda node: moved.get(node, node))
        graph.module.recompile()
    return len(moved)


def _in_order(output: Node, node: Node, order: list[int]) -> Node:
    """A copy whose axes stand in memory in an order, the slowest first."""
    steps: list[tuple[OpOverload, list[Any], dict[str, Any]]] = [
        (aten.permute.default, [order], {}),
        (aten.clone.default, [], {"memory_format": torch.contiguous_format}),
        (aten.permute.default, [sorted(range(len(order)), key=order.__getitem__)], {}),
    ]
    result = node
    for target, args, kwargs in steps[1:2] if order == sorted(order) else steps:
        with output.graph.inserting_before(output):
            result = output.graph.call_function(target, (result, *args), kwargs)
        result.meta = {key: value for key, value in node.meta.items() if key != "val"}
    return result


def _order(tensor: Tensor) -> list[int] | None:
    """The axes of a tensor in the order in which they stand in memory; None where it has gaps or repeats entries."""
    left = [dim for dim in range(tensor.dim()) if not same(tensor.shape[dim], 1)]
    order: list[int] = []
    stride: int | torch.SymInt = 1
    while left:
        fastest = next((dim for dim in left if same(tensor.stride(dim), stride)), None)
        if fastest is None:
            return None
        left.remove(fastest)
        order.insert(0, fastest)
        stride = stride * tensor.shape[fastest]
    return [dim for dim in range(tensor.dim()) if dim not in order] + order


def _same_strides(a: Tensor, b: Tensor) -> bool:
    return all(
        same(size, 1) or same(first, second)
        for size, first, second in zip(a.shape, a.stride(), b.stride(), strict=True)
    )
