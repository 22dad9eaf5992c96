"""Rules of the layout walk for matrix products and attention."""

from __future__ import annotations

import torch
from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.axes import Axis
from jetvit.patterns.calls import shape
from jetvit.patterns.einsum import parse_einsum
from jetvit.patterns.operator_args import qkv_of
from jetvit.patterns.rules import AxisReader, Value, rule

aten = torch.ops.aten


@rule(aten.linear.default)
def linear(walk: AxisReader, node: Node) -> Value:
    """New features on the last axis; a weight that is a vector leaves none."""
    before = walk.of(node.args[0])[:-1]
    if len(shape(node.args[1])) == 1:
        return before
    return (*before, ax.fresh(shape(node)[-1], "feature"))


@rule(
    aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default,
    aten._int_mm.default, aten.mv.default,
)  # fmt: skip
def matmul(walk: AxisReader, node: Node) -> Value:
    """Rows of the first operand, columns of the second; columns of a weight are new features, a vector has none."""
    first, second = node.args[1:3] if node.target in (aten.addmm.default, aten.baddbmm.default) else node.args[:2]
    a, b = walk.of(first), walk.of(second)
    if len(a) >= 2 and len(b) == 1:
        return a[:-1]
    if len(a) < 2 or len(b) < 2:
        return None
    columns = b[-1] if ax.rank_of(b[-1]) > 0 else ax.fresh(shape(node)[-1], "feature")
    return (*ax.broadcast([a[:-2], b[:-2]]), a[-2], columns)


@rule(aten.scaled_dot_product_attention.default)
def attention(walk: AxisReader, node: Node) -> Value:
    """The query's axes, the value's features."""
    query, _, value = qkv_of(node)
    q, v = walk.of(query), walk.of(value)
    return (*q[:-1], v[-1])


@rule(aten.einsum.default)
def einsum(walk: AxisReader, node: Node) -> Value:
    """Each letter is an axis."""
    equation, operands = node.args[:2]
    parsed = parse_einsum(equation, [len(shape(used)) for used in operands])
    if parsed is None:
        return None
    letters: dict[str, Axis] = {}
    for term, used in zip(parsed[0], operands, strict=True):
        axes = walk.of(used)
        if len(axes) != len(term):
            return None
        for letter, axis in zip(term, axes, strict=True):
            letters[letter] = ax.join(letters[letter], axis) if letter in letters else axis
    return tuple(letters[letter] for letter in parsed[1])
