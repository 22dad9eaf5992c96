"""Find the nodes that share memory, the memory written to in place, and the readers that rely on strides."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch.fx import Node

from jetvit.patterns.regions import REGION_OPERANDS, GraphView
from jetvit.torch_private import HigherOrderOperator, OpOverload, pytree, schema

aten = torch.ops.aten
_STRIDED = {aten.view.default, aten.view.dtype, aten._unsafe_view.default, aten.view_as_complex.default}
_ANY_STRIDES = {aten.reshape.default, aten.contiguous.default, aten.flatten.using_ints}


def storage(node: Node, view: GraphView) -> Node:
    """The node whose memory a view, a view of a view, or an in-place result looks at; the node itself if it is new."""
    node = view.resolve(node)
    while (base := _base(node)) is not None:
        node = view.resolve(base)
    return node


def written(view: GraphView) -> set[Node]:
    """The storages that the graph or one of its regions writes to, such as running statistics and in-place sums."""
    return {storage for _, storage in writes(view)}


def writes(view: GraphView) -> list[tuple[Node, Node]]:
    """Every node that writes in place, in the order of execution, with each storage that it writes to."""
    return [(node, storage(target, view)) for node in view.nodes for target in _targets(node)]


def relies_on_strides(node: Node) -> bool:
    """True if a `view`, which fails on memory that it cannot look at, may read the node, directly or through views.

    The strides of a node are those of the example: another SDPA backend or a channels-last image gives others.
    """
    for user in node.users:
        if user.target in _STRIDED or user.target in REGION_OPERANDS:
            return True
        if user.op == "output" or user.target in _ANY_STRIDES:
            continue
        if _base(user) is node and relies_on_strides(user):
            return True
    return False


def _base(node: Node) -> Node | None:
    """The argument whose memory the result of a node may share."""
    if node.target is operator.getitem:
        return node.args[0] if _base(node.args[0]) is not None else None
    if not isinstance(node.target, OpOverload):
        return None
    if not any(result.alias_info is not None for result in schema(node.target).returns):
        return None
    shared = next((each for each in _arguments(node) if each[0].alias_info is not None), None)
    return shared[1] if shared is not None and isinstance(shared[1], Node) else None


def _targets(node: Node) -> list[Node]:
    """The tensors that an in-place node writes to; a higher-order operator may write to all inputs, unless a region."""
    if isinstance(node.target, HigherOrderOperator):
        return [] if node.target in REGION_OPERANDS else node.all_input_nodes
    if not isinstance(node.target, OpOverload) or not schema(node.target).is_mutable:
        return []
    values = [value for argument, value in _arguments(node) if argument.alias_info and argument.alias_info.is_write]
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Node)]


def _arguments(node: Node) -> Iterator[tuple[torch.Argument, object]]:
    for position, argument in enumerate(schema(node.target).arguments):
        if position < len(node.args):
            yield argument, node.args[position]
        elif argument.name in node.kwargs:
            yield argument, node.kwargs[argument.name]
