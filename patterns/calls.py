"""Read a call node: its arguments, the sizes of its result, the order of axes that it makes."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from jetvit.patterns.sizes import Size


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or by keyword."""
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name, default)


def traced_value(argument: Any) -> Any:
    """The value that an argument of a call had in the trace: that of a node, or the argument itself."""
    return argument.meta["val"] if isinstance(argument, Node) else argument


def shape(node: Node) -> tuple[Size, ...]:
    """The sizes of the tensor that a node yields."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def permutation(node: Node) -> list[int]:
    """Return the source axis of each axis of the result of a call of `aten_sets.PERMUTES`."""
    order = list(range(len(shape(node))))
    if node.target is torch.ops.aten.permute.default:
        return [dim % len(order) for dim in node.args[1]]
    if len(order) > 1:
        first, second = (dim % len(order) for dim in (node.args[1:3] or (-2, -1)))
        order[first], order[second] = order[second], order[first]
    return order
