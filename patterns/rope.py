"""Rotary position embeddings on the way to q and k.

Two styles are recognised, both as x · cos + rotate(x) · sin: "half", where rotate gives (−x₂, x₁) for the two halves of
head_dim (HF DINOv3), and "interleaved", where it does so for neighbouring pairs (timm's EVA family). Tokens that are
not rotated stand in a concatenation around the rotated ones. What is not recognised simply stays in the graph.

Of a recognised rotation `RopeReader` also says whether an operator can do it instead: all grid tokens are turned and no
other, by axial tables, and q and k before the rotation can be read where the attention stands.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from jetvit.patterns.aten_sets import CASTS, COPIES, PERMUTES, SPLITS, VIEWS
from jetvit.patterns.axes import Axis, axis_size
from jetvit.patterns.calls import argument, shape
from jetvit.patterns.core import Core, Side
from jetvit.patterns.geometry import layout_like
from jetvit.patterns.lengths import Lengths, product, total
from jetvit.patterns.operator_args import arguments_of
from jetvit.patterns.regions import GraphView
from jetvit.patterns.rope_tables import AxialTables
from jetvit.patterns.site import AttentionSite, Operand, Rope, RopeTables
from jetvit.patterns.sizes import Size, same, same_sizes
from jetvit.patterns.storage import storage
from jetvit.patterns.walk import LayoutWalk

aten = torch.ops.aten
_TENSORS = torch.Tensor | list | tuple  # the values of nodes that are no sizes
_CUTS = (
    SPLITS | VIEWS | PERMUTES | CASTS | {operator.getitem, aten.unsqueeze.default, aten.select.int, aten.slice.Tensor}
)
"""The views by which models cut cos and sin anew for each layer."""


@dataclass(frozen=True)
class Rotation:
    """One rotation.

    Attributes:
        before: the tensor before it, with the tokens that are not rotated.
        part: the tokens of it that are rotated.
        turned: `part` after the rotation.
        after: the result, all tokens again.
        cos, sin: the tables.
        style: "half" or "interleaved".
    """

    before: Node
    part: Node
    turned: Node
    after: Node
    cos: Node
    sin: Node
    style: str


class RopeReader:
    """Reads the rotary embeddings of a graph.

    Tables are the same for all layers: what is proven of them once is kept.
    """

    def __init__(self, walk: LayoutWalk):
        self.walk, self.view = walk, walk.view
        self._lengths = Lengths(walk.view.nodes)
        self._axial = AxialTables(walk.view, self._lengths, walk.written)
        self._first: dict[tuple[Graph, Any], Node] = {}

    def read(self, core: Core, site: AttentionSite) -> Rope | None:
        """The rotary embedding that q and k of a site share, or None."""
        assert core.q is not None
        assert core.k is not None
        if core.form == "operator" and shape(arguments_of(core.out.node).rope_y) != (0,):
            return Rope("half", None, None, core.q.node, core.k.node)
        q, k = read_rotation(core.q.node, self.view), read_rotation(core.k.node, self.view)
        if q is None or k is None or q.style != k.style:
            return None
        if any(_value_key(a, self.view) != _value_key(b, self.view) for a, b in ((q.cos, k.cos), (q.sin, k.sin))):
            return None
        rope = Rope(q.style, q.cos, q.sin, q.before, k.before)
        return replace(rope, tables=self._tables(core.q, q, core.k, k, site)) if q.style == "half" else rope

    def _tables(self, q: Side, of_q: Rotation, k: Side, of_k: Rotation, site: AttentionSite) -> RopeTables | None:
        """The inputs of an operator that does the rotation itself; None where it cannot."""
        before_q, before_k = self._before(q, of_q, site), self._before(k, of_k, site)
        if before_q is None or before_k is None or before_q[1] != before_k[1]:
            return None
        (unrotated_q, token), (unrotated_k, _) = before_q, before_k
        cos, sin = (self._first_of(each) for each in (of_q.cos, of_q.sin))
        if not all(self._axial.holds(table, token, site.grid) for table in (cos, sin)):
            return None
        graph = site.out.node.graph
        if not all(self.view.reachable(node, graph) for node in (cos, sin, unrotated_q.node, unrotated_k.node)):
            return None
        return RopeTables(unrotated_q, unrotated_k, cos, sin, token)

    def _first_of(self, node: Node) -> Node:
        """The node of a table that all sites share: models cut it anew for each of them."""
        return self._first.setdefault((node.graph, _value_key(node, self.view)), node)

    def _before(self, side: Side, rotation: Rotation, site: AttentionSite) -> tuple[Operand, int] | None:
        """The operand that an operator rotates, and which axis of the rotated part holds the tokens, from the right.

        None unless it has the batch, heads and tokens of the site, and the grid tokens are what was rotated.
        """
        rank = len(shape(rotation.before))
        axes = self.walk.of(rotation.before), self.walk.of(rotation.part), self.walk.of(rotation.after)
        if any(len(each) != rank for each in axes) or not same_sizes(shape(rotation.part), shape(rotation.turned)):
            return None
        before, part, after = axes
        if before[-1] != part[-1] or self.walk.of(self.view.resolve(side.node))[side.dim] != after[-1]:
            return None  # a part of head_dim is rotated, or it is taken apart afterwards
        for token in range(rank - 1):
            others = [dim for dim in range(rank - 1) if dim != token]
            kept = before[token] == after[token] and all(before[dim] == part[dim] == after[dim] for dim in others)
            layout = layout_like(self.walk, Side(rotation.before, token, rank - 1), side) if kept else None
            if layout is not None and self._is_grid(part[token], before[token], site):
                break
        else:
            return None
        if not self._is_faithful(side.node, rotation, site.compute_dtype):
            return None
        return Operand(rotation.before, layout), token - rank

    def _is_grid(self, part: Axis, whole: Axis, site: AttentionSite) -> bool:
        """True if a range of a site's tokens is the grid, no token more and none less."""
        start: Size = 0
        stop = axis_size(whole)
        if part != whole:
            if len(part) != 1 or part[0].cut is None or part[0].cut[0] != whole:
                return False
            _, start, stop = part[0].cut
        rows, columns, first, start, stop = (
            self._lengths.of(size) for size in (*site.grid, site.extra_before, start, stop)
        )
        return start == first and stop == total(first, product([rows, columns]))

    def _is_faithful(self, node: Node, rotation: Rotation, dtype: torch.dtype) -> bool:
        """True if an operator that works in a dtype gives what the way from `before` to q or k gives, or nearer.

        On the way nothing may be written to in place, or rounded where the operator would not: what is multiplied holds
        that dtype or the one of `before`, what comes of it holds that dtype.
        """
        first = rotation.before.meta["val"].dtype
        seen: dict[Node, bool] = {rotation.before: False, rotation.cos: False, rotation.sin: False}
        faithful = self._is_kept(rotation.before)

        def is_product(node: Node) -> bool:
            nonlocal faithful
            node = self.view.resolve(node)
            if node not in seen:
                tensors = [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), _TENSORS)]
                before = [is_product(each) for each in tensors]
                seen[node] = any(before) or node.target is aten.mul.Tensor
                value = node.meta.get("val")
                if isinstance(value, torch.Tensor):
                    kept = _holds(value.dtype, dtype) or (not seen[node] and _holds(value.dtype, first))
                    faithful = faithful and kept and self._is_kept(node)
            return seen[node]

        is_product(node)
        return faithful

    def _is_kept(self, node: Node) -> bool:
        """True if nothing writes to the memory of a tensor in place."""
        return not self.walk.written or storage(node, self.view) not in self.walk.written


def read_rotation(node: Node, view: GraphView) -> Rotation | None:
    """The rotation that a tensor comes from, through casts and a concatenation with tokens that are not rotated."""
    node = _through(node, view, CASTS | COPIES | VIEWS | PERMUTES)
    if node.target is aten.cat.default:
        parts = {part: _rotated(_through(part, view, CASTS), view) for part in node.args[0]}
        found = [rotation for rotation in parts.values() if rotation is not None]
        if len(found) != 1:
            return None
        dim = argument(node, 1, "dim", 0) % len(shape(node))
        before = _origin(found[0].part, dim, view)
        if any(_origin(part, dim, view) is not before for part, rotated in parts.items() if rotated is None):
            return None  # the other tokens come from elsewhere
        return replace(found[0], before=before, after=node)
    return _rotated(node, view)


def _rotated(node: Node, view: GraphView) -> Rotation | None:
    if node.target is not aten.add.Tensor or node.kwargs:
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
                        part = view.resolve(x)
                        return Rotation(part, part, node, node, view.resolve(cos), view.resolve(sin), style)
    return None


def _rotation_style(node: Node, x: Node, view: GraphView) -> str | None:
    """The style in which `node` is x rotated by 90 degrees, or None."""
    rank = len(shape(node))
    if node.target is aten.cat.default and len(node.args[0]) == 2 and argument(node, 1, "dim", 0) % rank == rank - 1:
        negative, positive = (view.resolve(part) for part in node.args[0])
        if negative.target is aten.neg.default:
            halves = _half(view.resolve(negative.args[0]), x, view), _half(positive, x, view)
            return "half" if halves == (1, 0) else None
    node = _through(node, view, VIEWS)
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
    if source is not None and source.target in SPLITS and view.resolve(source.args[0]) is x:
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


def _value_key(node: Node, view: GraphView) -> Any:
    """Equal for the same node, and for the same views and splits of one: tables are often cut anew for q and for k."""
    node = view.resolve(node)
    if node.op != "call_function" or node.target not in _CUTS:
        return node
    options = (*node.args[1:], *sorted(node.kwargs.items()))
    return node.target, _value_key(node.args[0], view), *(tuple(o) if isinstance(o, list) else o for o in options)


def _origin(node: Node, dim: int, view: GraphView) -> Node:
    """The tensor whose tokens, along an axis, were split into rotated and other ones."""
    while True:
        node = view.resolve(node)
        if node.target is operator.getitem:
            cut, position = view.resolve(node.args[0]), 2
            if cut.target not in SPLITS:
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


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """True if a floating dtype holds every value of another."""
    return wide.is_floating_point and torch.promote_types(wide, narrow) == wide


def _through(node: Node, view: GraphView, targets: frozenset[object]) -> Node:
    node = view.resolve(node)
    while node.op == "call_function" and node.target in targets:
        node = view.resolve(node.args[0])
    return node
