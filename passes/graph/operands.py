"""q, k and v of a site, brought to one order and one dtype at the place where its result is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from jetvit.passes.graph.insertion import Insertion
from jetvit.passes.graph.layouts import factor_in_order, from_order, to_order, views_to_reshapes
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.patterns.regions import GraphView
from jetvit.patterns.site import AttentionSite

aten = torch.ops.aten


class Operands:
    """The inputs of a replacement attention. What multiplies the scores beside the scale multiplies q.

    Under autocast q, k and v get the region's dtype, as autocast itself would give it to the attention. Elsewhere they
    get the widest of their dtypes, so that a softmax that the model computes in fp32 stays in fp32.

    Args:
        graph: the graph that is being rewritten.
        site: one of its sites.
        view: a view of the graph as it is now.
        order: the order of axes that the replacement takes and gives: "bhtd" or "bthd".
    """

    def __init__(self, graph: RewritableGraph, site: AttentionSite, view: GraphView, order: str):
        self.site, self.order = site, order
        self.insertion = Insertion(graph, site.out.node, view)
        heads = ((site.q, None), (site.k, site.kv_heads), (site.v, site.kv_heads))
        sides = [to_order(self.insertion, side, site, order, count) for side, count in heads]
        dtype = site.autocast
        if dtype is None:
            dtype = sides[0].meta["val"].dtype
            for side in sides[1:]:
                dtype = torch.promote_types(dtype, side.meta["val"].dtype)
        for factor in site.factors:
            target = aten.div.Tensor if factor.divides else aten.mul.Tensor
            scales = factor_in_order(self.insertion, factor.operand, site, order)
            sides[0] = self.insertion.call(target, sides[0], scales)
        self.q, self.k, self.v = (self.insertion.cast(side, dtype) for side in sides)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A node at the place of the site's result."""
        return self.insertion.call(target, *args, **kwargs)

    def replace(self, result: Node) -> None:
        """Let the rest of the graph read the replacement. The nodes of the old attention are left to the clean-up."""
        out = self.site.out.node
        result = self.insertion.cast(result, out.meta["val"].dtype)
        result = from_order(self.insertion, result, self.site, self.order)
        out.replace_all_uses_with(result)
        out.graph.erase_node(out)
        views_to_reshapes(result)
