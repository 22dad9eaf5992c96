"""The layout walk: one forward pass that finds what every axis of every tensor in a graph is made of.

`LayoutWalk(view)` gives `axes[node]` for each live node: a tuple of axes for a tensor, a list of them for a tuple of
tensors. Operators are rules in a table, `jetvit.patterns.rules`; an operator without one makes axes of kind "unknown"
that name it, so that an attention over such an axis is refused with the true reason. The walk is linear in the number
of nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

import jetvit.patterns.rules_joins
import jetvit.patterns.rules_maps
import jetvit.patterns.rules_views  # noqa: F401  registers rules, as the two above
from jetvit.patterns import axes as ax
from jetvit.patterns import ranges
from jetvit.patterns.axes import Axes, Axis
from jetvit.patterns.constants import Constants
from jetvit.patterns.regions import GraphView
from jetvit.patterns.rules import RULES, AxisReader, Value
from jetvit.patterns.rules_elementwise import BY_NAME, like_first, pointwise
from jetvit.patterns.rules_products import attention
from jetvit.patterns.sizes import is_one
from jetvit.patterns.storage import storage, writes
from jetvit.patterns.wording import operator_name
from jetvit.torch_private import OpOverload

aten = torch.ops.aten

_LIKE_ANOTHER = {aten.type_as.default, aten.expand_as.default, aten.view_as.default, aten.reshape_as.default}
_FILLED = {
    aten.zeros_like.default, aten.ones_like.default, aten.new_zeros.default, aten.new_ones.default,
}  # fmt: skip
_WRITES_IN_PLACE = {aten.fill_, aten.normal_, aten.uniform_, aten.bernoulli_}
"""Writes of no other tokens, beside those of elementwise operators."""


class LayoutWalk(AxisReader):
    """The axes of every node of a view, and which of its inputs each depends on.

    Args:
        view: of the graph.
        tensor_names: the placeholders and attributes that are parameters, buffers and constants.
        known: the axes of inputs of which more is known than their shape.

    Attributes:
        sources: node → the subset of {"input", "weight"} that its value depends on; empty for a constant.
        writes: the nodes that write in place, in order, with what they write to.
        written: the nodes whose memory the graph writes to in place.
    """

    def __init__(self, view: GraphView, tensor_names: Any, known: Mapping[Node, Axes] | None = None):
        super().__init__()
        self.view = view
        known = known or {}
        self.sources: dict[Node, frozenset[str]] = {}
        self.writes = writes(view)
        self.written = {target for _, target in self.writes}
        targets: dict[Node, list[Node]] = {}
        for node, target in self.writes:
            targets.setdefault(node, []).append(target)
        self._looking_at: dict[Node, list[Node]] = {target: [] for target in self.written}
        for node in view.nodes if self.written else ():
            if (memory := storage(node, view)) in self._looking_at:
                self._looking_at[memory].append(node)
        self._constants = Constants(view, self.sources, self.writes)
        for node in view.nodes:
            resolved = view.resolve(node)
            if resolved is not node:
                self.axes[node], self.sources[node] = self.axes.get(resolved), self.sources.get(resolved, frozenset())
                continue
            used = node.all_input_nodes
            if node.target in _LIKE_ANOTHER:  # only the dtype, or the sizes, of the other tensor count
                used = used[:1]
            elif node.target in _FILLED:
                used = []
            self.sources[node] = frozenset().union(*(self.sources.get(each, ()) for each in used))
            if node.op in ("placeholder", "get_attr"):
                weight = node in tensor_names
                self.sources[node] = frozenset(["weight" if weight else "input"])
                self.axes[node] = known.get(node) or self._entry(node, weight)
            elif node.op == "call_function":
                if node.target is aten.sym_size.int:
                    self.sources[node] = frozenset()  # a size is nothing that an image holds
                self.axes[node] = self._call(node)
                if node in targets and not self._keeps_tokens(node):
                    self._forget(targets[node], f"{operator_name(node.target)}, which writes other tokens in place")

    def _forget(self, targets: list[Node], origin: str) -> None:
        """Nothing is known any more of what looks at some memory, and why."""
        for target in targets:
            for each in self._looking_at[target]:
                if each in self.axes:
                    self.axes[each] = unknown(each, origin=origin)

    def is_always(self, node: Node, value: float, reader: Node) -> bool:
        """True if every entry of a tensor is provably this number where another node reads it."""
        if not self._is_written(node) and ranges.is_always(node, value):
            return True
        known = self.constant(node, reader)
        return known is not None and bool((known == value).all())

    def constant(self, node: Node, reader: Node) -> torch.Tensor | None:
        """The value, on the CPU, that a node has where another one reads it, if nothing but constants makes it."""
        return self._constants.value(node, reader)

    def _keeps_tokens(self, node: Node) -> bool:
        """True if what an in-place node writes into a place of a tensor is no other token than stands there.

        An elementwise operator changes the token of each place, as it does out of place. A copy has to be of the same
        tokens; numbers, and what is the same for every image, may be copied anywhere.
        """
        if not isinstance(node.target, OpOverload):
            return True  # the body of a higher-order operator writes to none of its operands, in all that is known
        if node.target is not aten.copy_.default:
            elementwise = torch.Tag.pointwise in node.target.tags or RULES.get(node.target) is like_first
            return elementwise or node.target.overloadpacket in _WRITES_IN_PLACE
        places, axes = self.of(node.args[0]), self.of(node.args[1])
        pairs = zip(reversed(axes), reversed(places), strict=False)
        return len(axes) <= len(places) and all(
            ax.rank_of(axis) <= 0 or _in_place(axis, place) for axis, place in pairs
        )

    def _is_written(self, node: Node) -> bool:
        """True if something writes to a tensor, or to what it is made from."""
        stack, seen = [node], set()
        while stack:
            each = stack.pop()
            if each not in seen:
                seen.add(each)
                if storage(each, self.view) in self.written:
                    return True
                stack.extend(each.all_input_nodes)
        return False

    @staticmethod
    def _entry(node: Node, weight: bool) -> Value:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return None
        if weight:
            return ax.fresh_axes(value.shape, "weight")
        return tuple(ax.fresh(size, "input", node.name, (node.name, dim)) for dim, size in enumerate(value.shape))

    def _call(self, node: Node) -> Value:
        value = node.meta.get("val")
        rule = RULES.get(node.target) or BY_NAME.get(str(node.target))
        result: Value = None
        if rule is not None:
            result = rule(self, node)
        elif isinstance(node.target, OpOverload) and node.target.namespace == "jetvit":
            result = attention(self, node)
        elif isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags:
            result = pointwise(self, node)
        if isinstance(result, tuple) and isinstance(value, torch.Tensor) and len(result) == value.dim():
            return result
        if isinstance(result, list):
            return result
        # What is made of weights and constants alone is the same for every image, whatever makes it.
        return unknown(node, "weight" if self.sources[node] <= {"weight"} else "unknown")


def _in_place(axis: Axis, place: Axis) -> bool:
    """True if the entries of an axis can go along another: the same ones, or others of the same kind.

    Features can take the place of features, and the rows of a map those of another map of as many rows.
    """
    axis, place = (tuple(atom for atom in each if not is_one(atom.size)) for each in (axis, place))
    if not axis or ax.alike(axis, place) or all(atom.kind == "feature" for atom in axis + place):
        return True
    whole = len(axis) == len(place) == 1 and axis[0].cut is None and place[0].cut is None
    return whole and axis[0].kind == place[0].kind in ("row", "col")


def unknown(node: Node, kind: str = "unknown", origin: str = "") -> Value:
    """Axes of an operator that the walk does not know, named after it, or of which an origin is known."""

    def make(value: Any) -> Value:
        if isinstance(value, torch.Tensor):
            return ax.fresh_axes(value.shape, kind, origin or f"{operator_name(node.target)} ({node.name})")
        return [make(item) for item in value] if isinstance(value, list | tuple) else None

    return make(node.meta.get("val"))
