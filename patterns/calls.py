"""Reading a call node: its arguments, and the sizes of what it yields."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from jetvit.patterns.sizes import Size

_aten = torch.ops.aten
SPLITS = (
    _aten.chunk.default, _aten.split.Tensor, _aten.split.default, _aten.split.sizes, _aten.split_with_sizes.default,
    _aten.tensor_split.sections,
)  # fmt: skip
"""Operators that cut an axis, their third argument, into consecutive parts."""


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or by keyword."""
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name, default)


def shape(node: Node) -> tuple[Size, ...]:
    """The sizes of the tensor that a node yields."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
