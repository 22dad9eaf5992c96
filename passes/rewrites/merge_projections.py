"""Exact: the separate projections to q, k and v become one matrix product.

Covered: three linear layers that read one tensor and belong to one site alone, any of them without a bias. Only where
the graph owns its weights, because the merged weight is a copy. Larger products run closer to the peak of the device.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from jetvit.passes.graph.base import PassResult
from jetvit.passes.graph.insertion import Insertion
from jetvit.passes.graph.layouts import views_to_reshapes
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.patterns.aten_sets import RESHAPES
from jetvit.patterns.cores import operator_core
from jetvit.patterns.names import module_name
from jetvit.patterns.projections import read_projections
from jetvit.patterns.regions import GraphView
from jetvit.patterns.site import Linear
from jetvit.patterns.sizes import same
from jetvit.patterns.storage import storage, written

aten = torch.ops.aten
_SPLITTING_VIEWS = RESHAPES - {aten.flatten.using_ints}  # a flatten joins axes


@dataclass(frozen=True)
class MergeProjections:
    """One product for q, k and v at every site with three.

    Sites that a plan has rewritten are merged as well: the three products are read off the operator's operands.
    """

    name: ClassVar[str] = "merge-projections"

    def __call__(self, graph: RewritableGraph) -> PassResult:
        if not graph.owns_weights:
            return PassResult()
        sites = graph.sites()
        projections = [site.projections for site in sites]
        view = GraphView(graph.module, graph.ambient_autocast)
        projections += [
            read_projections(operator_core(entry.node), view, graph.tensor_names) for entry in sites.rewritten
        ]
        groups = [
            [named[role] for role in "qkv"] for each in projections if {"q", "k", "v"} <= set(named := each.named())
        ]
        return PassResult(sum(_merge(graph, group) for group in groups))


def _merge(graph: RewritableGraph, linears: list[Linear]) -> bool:
    nodes = [linear.node for linear in linears]
    view = GraphView(graph.module, graph.ambient_autocast)
    weights = [view.resolve(node.args[1]) for node in nodes]
    biases = [view.resolve(node.args[2]) if linear.bias else None for node, linear in zip(nodes, linears, strict=True)]
    if len({view.resolve(node.args[0]) for node in nodes}) != 1 or len({node.graph for node in nodes}) != 1:
        return False
    if storage(nodes[0].args[0], view) in written(view):
        return False  # one product reads its input once, where three may read it before and after the change
    if not all(_splits_features(user, node) for node in nodes for user in view.users(node)):
        return False
    order = {node: index for index, node in enumerate(nodes[0].graph.nodes)}
    first = min(nodes, key=order.__getitem__)
    values = [graph.tensor(weight) for weight in weights]
    if any(value is None for value in values) or len({value.dtype for value in values if value is not None}) != 1:
        return False
    name = f"{module_name(first).rpartition('.')[0] or module_name(first)}.merged_qkv"
    weight = graph.add_tensor(f"{name}.weight", _joined([value for value in values if value is not None]))
    bias = None
    if any(biases):
        rows = [_bias(graph, node, weight, linear) for node, linear in zip(biases, linears, strict=True)]
        bias = graph.add_tensor(f"{name}.bias", _joined(rows))
    insertion = Insertion(graph, first, view)
    tensors = [insertion.bring(node) for node in (weight, bias) if node is not None]
    product = insertion.call(aten.linear.default, first.args[0], *tensors)
    parts = insertion.call(aten.split_with_sizes.default, product, [linear.out_features for linear in linears], -1)
    split = [insertion.call(operator.getitem, parts, index) for index in range(len(nodes))]
    for node, part in zip(nodes, split, strict=True):
        node.replace_all_uses_with(part)
        node.graph.erase_node(node)
        views_to_reshapes(part)
    return True


def _splits_features(user: Node, node: Node) -> bool:
    """A view that only splits the last axis takes a part of a wider product as well, without a copy."""
    if user.target not in _SPLITTING_VIEWS or user.args[0] is not node:
        return False
    before, after = node.meta["val"].shape, user.meta["val"].shape
    leading = len(before) - 1
    return len(after) > leading and all(same(b, a) for b, a in zip(before[:leading], after[:leading], strict=True))


def _joined(rows: list[torch.Tensor]) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.cat([row.detach() for row in rows]), requires_grad=rows[0].requires_grad)


def _bias(graph: RewritableGraph, node: Node | None, weight: Node, linear: Linear) -> torch.Tensor:
    value = graph.tensor(node) if node is not None else None
    if value is not None:
        return value
    like = weight.meta["val"]
    return torch.zeros(linear.out_features, dtype=like.dtype, device=like.device)
