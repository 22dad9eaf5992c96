"""Softmax operators, and softmax written out as an exponential over its sum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from jetvit.patterns.aten_sets import NORMS, SOFTMAX
from jetvit.patterns.calls import argument, shape
from jetvit.patterns.regions import GraphView

aten = torch.ops.aten
ENDS = NORMS | {aten.group_norm.default}
"""Operators before which another part of the model starts."""
SEARCH = 12  # how many steps back from a softmax a product of q and k may stand for a near miss to be told


@dataclass(frozen=True)
class Softmax:
    """A softmax: the scores that it reads, the axis that it runs over, its result, and the nodes that compute it."""

    scores: Node
    axis: int
    result: Node
    nodes: tuple[Node, ...]


def as_softmax(node: Node, view: GraphView) -> Softmax | None:
    """The softmax whose result a node is: the operator's, exp of a log_softmax, or exp(x) / exp(x).sum(axis)."""
    rank = len(shape(node))
    if rank >= 2 and node.target is aten.exp.default:
        inner = view.resolve(node.args[0])
        if inner.target is aten.log_softmax.int and view.users(inner) == [node]:
            return Softmax(view.resolve(inner.args[0]), argument(inner, 1, "dim") % rank, node, (inner, node))
    if rank >= 2 and node.target in SOFTMAX:
        return Softmax(view.resolve(node.args[0]), argument(node, 1, "dim") % rank, node, (node,))
    if rank < 2 or node.target is not aten.div.Tensor or not all(isinstance(each, Node) for each in node.args):
        return None
    exponential, total = (view.resolve(each) for each in node.args)
    if exponential.target is not aten.exp.default or total.target is not aten.sum.dim_IntList:
        return None
    axes, keepdim = argument(total, 1, "dim"), argument(total, 2, "keepdim", False)
    alone = set(view.users(exponential)) == {total, node} and view.users(total) == [node]
    if view.resolve(total.args[0]) is not exponential or not (keepdim and axes and len(axes) == 1 and alone):
        return None
    return Softmax(view.resolve(exponential.args[0]), axes[0] % rank, node, (exponential, total, node))
