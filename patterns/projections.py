"""The matrix products that make q, k and v and that read the result, where they belong to one site alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import Node

from jetvit.patterns.aten_sets import CASTS, LAYOUTS, NORMS, SCALINGS
from jetvit.patterns.calls import argument, shape
from jetvit.patterns.core import Core
from jetvit.patterns.regions import GraphView
from jetvit.patterns.rope import read_rotation
from jetvit.patterns.site import Linear, Projections

aten = torch.ops.aten
_ROTARY = frozenset({aten.add.Tensor, aten.mul.Tensor, aten.cat.default, aten.neg.default, aten.stack.default})
"""Compute a rotary embedding."""
_ROW_WISE = LAYOUTS | CASTS | NORMS | {aten.repeat_interleave.self_int}
"""May stand between a projection and the attention."""


def read_projections(core: Core, view: GraphView, names: Mapping[Node, str]) -> Projections:
    """The projections of a core. Those that another part of the graph reads as well are left out."""
    inner = {*core.nodes, *core.peeled}
    found: dict[str, tuple[Node, set[Node]]] = {}
    for role, side in (("q", core.q), ("k", core.k), ("v", core.v)):
        if side is not None and (step := _back(side.node, view)) is not None:
            found[role] = step
            inner |= step[1]
    out = _forward(core.out.node, view)
    linears: dict[str, Linear] = {}
    for role, (node, _) in found.items():
        if _belongs(node, inner, set(core.nodes), view) and (linear := _linear(node, view, names)) is not None:
            linears[role] = linear
    products = {role: found[role][0] for role in linears}
    result = _linear(out, view, names) if out is not None else None
    if len(products) == 3 and len(set(products.values())) == 1:
        return Projections(packed=linears["q"], out=result)
    if len(set(products.values())) < len(products):
        return Projections(out=result)  # two of q, k, v share a product: such a model keeps its own
    return Projections(q=linears.get("q"), k=linears.get("k"), v=linears.get("v"), out=result)


def _back(node: Node, view: GraphView) -> tuple[Node, set[Node]] | None:
    """The product that a tensor comes from, and every node on the way."""
    way: set[Node] = set()
    node = view.resolve(node)
    while node.op == "call_function":
        if node.target is aten.linear.default:
            return node, way | {node}
        way.add(node)
        rotation = read_rotation(node, view)
        if rotation is not None:
            way |= _between(node, rotation.before, view)
            node = view.resolve(rotation.before)
        elif node.target in _ROW_WISE or (node.target in SCALINGS and not isinstance(node.args[1], Node)):
            node = view.resolve(node.args[0])
        else:
            return None
    return None


def _between(node: Node, before: Node, view: GraphView) -> set[Node]:
    """The nodes of a rotation: from its result back to the tensor before it."""
    inner: set[Node] = set()
    stack = [node]
    while stack:
        each = view.resolve(stack.pop())
        if each in inner or each is before or each.op != "call_function":
            continue
        inner.add(each)
        if each.target in _ROTARY | LAYOUTS | CASTS:
            stack.extend(each.all_input_nodes)
    return inner


def _belongs(linear: Node, inner: set[Node], core: set[Node], view: GraphView) -> bool:
    """True if everything that reads the product is part of the site; views of it that lead nowhere do not count."""
    stack, seen = [linear], {linear}
    while stack:
        node = stack.pop()
        if node in core:
            continue
        for user in view.users(node):
            if user not in inner and user.target not in LAYOUTS:
                return False
            if user not in seen:
                seen.add(user)
                stack.append(user)
    return True


def _forward(node: Node, view: GraphView) -> Node | None:
    """The product that alone reads the result of the attention."""
    node = view.resolve(node)
    while True:
        users = view.users(node)
        if len(users) != 1:
            return None
        (node,) = users
        if node.target is aten.linear.default:
            return node
        idle = node.target is aten.dropout.default and not argument(node, 2, "train", False)
        if not (node.target in LAYOUTS | CASTS or idle):
            return None


def _linear(node: Node, view: GraphView, names: Mapping[Node, str]) -> Linear | None:
    """A product with a named weight that no other node uses."""
    weight = view.resolve(node.args[1])
    bias = view.resolve(node.args[2]) if len(node.args) > 2 and node.args[2] is not None else None
    if weight not in names or (bias is not None and bias not in names):
        return None
    if len(view.users(weight)) != 1:
        return None
    out_features, in_features = (int(size) for size in shape(weight))
    return Linear(node, names[weight], names[bias] if bias is not None else None, out_features, in_features)
