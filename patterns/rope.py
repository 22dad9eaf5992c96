"""Rotary position embeddings on the way to q and k.

Two styles are recognised, both as x · cos + rotate(x) · sin: "half", where rotate gives (−x₂, x₁) for the two halves of
head_dim (HF DINOv3), and "interleaved", where it does so for neighbouring pairs (timm's EVA family). Tokens that are
not rotated stand in a concatenation around the rotated ones. What is not recognised simply stays in the graph.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch.fx import Node

from jetvit.patterns.calls import argument, shape
from jetvit.patterns.cores import CASTS, COPIES, TURNS, VIEWS
from jetvit.patterns.regions import GraphView
from jetvit.patterns.site import Rope
from jetvit.patterns.sizes import same

aten = torch.ops.aten
_SPLITS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.tensor_split.sections)


@dataclass(frozen=True)
class Rotation:
    """One rotation: the tensor before it, the rotated part of it, the tables and the style."""

    before: Node
    cos: Node
    sin: Node
    style: str


def read_rope(q: Node, k: Node, view: GraphView) -> Rope | None:
    """The rotary embedding that q and k share, or None."""
    first, second = read_rotation(q, view), read_rotation(k, view)
    if first is None or second is None or first.style != second.style:
        return None
    if not (_same_value(first.cos, second.cos, view) and _same_value(first.sin, second.sin, view)):
        return None
    return Rope(first.style, first.cos, first.sin, first.before, second.before)


def read_rotation(node: Node, view: GraphView) -> Rotation | None:
    """The rotation that a tensor comes from, through casts and a concatenation with tokens that are not rotated."""
    node = _through(node, view, (*CASTS, *COPIES, *VIEWS, *TURNS))
    if node.target is aten.cat.default:
        parts = {part: _rotated(_through(part, view, CASTS), view) for part in node.args[0]}
        found = [rotation for rotation in parts.values() if rotation is not None]
        if len(found) != 1:
            return None
        dim = argument(node, 1, "dim", 0) % len(shape(node))
        before = _origin(found[0].before, dim, view)
        if any(_origin(part, dim, view) is not before for part, rotated in parts.items() if rotated is None):
            return None  # the other tokens come from elsewhere
        return Rotation(before, found[0].cos, found[0].sin, found[0].style)
    return _rotated(node, view)


def _rotated(node: Node, view: GraphView) -> Rotation | None:
    if node.target is not aten.add.Tensor:
        return None
    for plain, turned in (node.args[:2], node.args[1::-1]):
        if not (isinstance(plain, Node) and isinstance(turned, Node)):
            continue
        plain, turned = view.resolve(plain), view.resolve(turned)
        if not (plain.target is turned.target is aten.mul.Tensor):
            continue
        for x, cos in (plain.args[:2], plain.args[1::-1]):
            for rotated, sin in (turned.args[:2], turned.args[1::-1]):
                if all(isinstance(each, Node) for each in (x, cos, rotated, sin)):
                    style = _rotation_style(view.resolve(rotated), view.resolve(x), view)
                    if style is not None:
                        return Rotation(view.resolve(x), view.resolve(cos), view.resolve(sin), style)
    return None


def _rotation_style(node: Node, x: Node, view: GraphView) -> str | None:
    """The style in which `node` is x rotated by 90 degrees, or None."""
    if node.target is aten.cat.default and len(node.args[0]) == 2:
        negative, positive = (view.resolve(part) for part in node.args[0])
        if negative.target is aten.neg.default:
            halves = _half(view.resolve(negative.args[0]), x, view), _half(positive, x, view)
            return "half" if halves == (1, 0) else None
    node = _through(node, view, (*VIEWS, aten.flatten.using_ints))
    if node.target is aten.stack.default and len(node.args[0]) == 2:
        negative, positive = (view.resolve(part) for part in node.args[0])
        if negative.target is aten.neg.default:
            parities = _parity(view.resolve(negative.args[0]), x, view), _parity(positive, x, view)
            return "interleaved" if parities == (1, 0) else None
    return None


def _half(node: Node, x: Node, view: GraphView) -> int | None:
    """0 or 1 if the node is that half of x along head_dim."""
    size = shape(x)[-1]
    if node.target is aten.slice.Tensor and view.resolve(node.args[0]) is x and argument(node, 4, "step", 1) == 1:
        start, stop = argument(node, 2, "start") or 0, argument(node, 3, "end")
        if node.args[1] % len(shape(x)) == len(shape(x)) - 1 and shape(node)[-1] * 2 == size:
            return 0 if start == 0 else 1 if start == size // 2 and (stop is None or stop >= size) else None
    source = view.resolve(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
    if source is not None and source.target in _SPLITS and view.resolve(source.args[0]) is x:
        values = source.meta["val"]
        if len(values) == 2 and values[0].shape[-1] * 2 == size:
            return int(node.args[1])
    return None


def _parity(node: Node, x: Node, view: GraphView) -> int | None:
    """0 or 1 if the node is every second entry of x along head_dim, from there."""
    if node.target is not aten.slice.Tensor or view.resolve(node.args[0]) is not x:
        return None
    if argument(node, 4, "step", 1) != 2 or node.args[1] % len(shape(x)) != len(shape(x)) - 1:
        return None
    start = argument(node, 2, "start") or 0
    return int(start) if start in (0, 1) else None


def _same_value(a: Node, b: Node, view: GraphView) -> bool:
    """The same node, or the same views and splits of the same node: tables are often cut anew for q and for k."""
    a, b = view.resolve(a), view.resolve(b)
    if a is b:
        return True
    if (
        a.op != "call_function"
        or a.target is not b.target
        or a.target not in (operator.getitem, *_SPLITS, *VIEWS, *CASTS)
    ):
        return False
    return a.args[1:] == b.args[1:] and _same_value(a.args[0], b.args[0], view)


def _origin(node: Node, dim: int, view: GraphView) -> Node:
    """The tensor whose tokens, along an axis, were split into rotated and other ones."""
    while True:
        node = view.resolve(node)
        if node.target is operator.getitem:
            cut, position = view.resolve(node.args[0]), 2
            if cut.target not in _SPLITS:
                return node
        elif node.target is aten.slice.Tensor:
            cut, position = node, 1
        elif node.target in CASTS:
            node = node.args[0]
            continue
        else:
            return node
        before = cut.args[0]
        along = argument(cut, position, "dim", 0) % len(shape(before))
        if along != dim and not same(shape(node)[along], shape(before)[along]):
            return node
        node = before


def _through(node: Node, view: GraphView, targets: tuple[object, ...]) -> Node:
    node = view.resolve(node)
    while node.op == "call_function" and node.target in targets:
        node = view.resolve(node.args[0])
    return node
