"""Exact: the rotary embedding of q and k goes into the operator that takes the place of their attention.

Covered: what `RopeTables` proves, HF DINOv3 and timm's DINOv3 among it. The operator gets q and k as they are before
the rotation, and the angles of the rows and of the columns in two small tables, read off the model's own cos and sin.
These tables are made once, right behind cos and sin, for all sites and passes; where cos and sin are constants, they
are folded like them. The old rotation is read by nobody then, or only by what else reads it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch.fx import Graph, Node

from jetvit.passes.graph.insertion import Insertion
from jetvit.passes.graph.operands import Operands
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.patterns.calls import shape
from jetvit.patterns.operator_args import arguments_of
from jetvit.patterns.regions import GraphView
from jetvit.patterns.site import AttentionSite, RopeTables
from jetvit.torch_private import OpOverload

aten = torch.ops.aten
_OWN = "jetvit_rope_table"


class OperatorOperands(Operands):
    """The arguments of an operator of jetvit at a site.

    q and k are not rotated where the operator can rotate them itself; elsewhere the graph goes on to do it.

    Args:
        graph: the graph that is being rewritten.
        site: one of its sites.
        view: a view of the graph as it is now.
    """

    def __init__(self, graph: RewritableGraph, site: AttentionSite, view: GraphView):
        tables = site.rope.tables if site.rope is not None else None
        unrotated = site if tables is None else replace(site, q=tables.q, k=tables.k)
        super().__init__(graph, unrotated, view, "bthd")
        self.q, self.k, self.v = (self.insertion.cast(x, site.compute_dtype) for x in (self.q, self.k, self.v))
        if tables is not None:
            self.rope_y, self.rope_x = map(self.insertion.bring, table_nodes(graph, site, tables, view))
        elif site.form == "operator":
            arguments = arguments_of(site.out.node)
            self.rope_y, self.rope_x = arguments.rope_y, arguments.rope_x
        else:
            self.rope_y = self.rope_x = self.absent

    @cached_property
    def absent(self) -> Node:
        """The [0] that stands for a tensor that is not given."""
        return self.insertion.call(aten.new_empty.default, self.q, [0])

    @property
    def common(self) -> dict[str, int | Node]:
        """The arguments that all operators have, by name."""
        tensors = {"q": self.q, "k": self.k, "v": self.v, "rope_y": self.rope_y, "rope_x": self.rope_x}
        sizes = zip(("grid_h", "grid_w", "extra_before"), (*self.site.grid, self.site.extra_before), strict=True)
        return tensors | {name: self.insertion.size(size) for name, size in sizes}


def table_nodes(graph: RewritableGraph, site: AttentionSite, tables: RopeTables, view: GraphView) -> tuple[Node, Node]:
    """rope_y and rope_x of a site: nodes of the outermost graph in which both cos and sin can be had."""
    cos, sin = _outermost(view, site.out.node.graph, tables)
    later = next(node for node in reversed(cos.graph.nodes) if node in (cos, sin))
    anchor = later.next
    while _OWN in anchor.meta:
        anchor = anchor.next
    insertion = Insertion(graph, anchor, view, origin=later)
    return _Tables(insertion, site, tables.token, cos, sin).nodes()


class _Tables:
    """Makes the tables of one pair of cos and sin; what was made before is taken again."""

    def __init__(self, insertion: Insertion, site: AttentionSite, token: int, cos: Node, sin: Node):
        self.insertion, self.token, self.both = insertion, token, (cos, sin)
        self.grid = [insertion.size(size) for size in site.grid]
        self.head_dim = site.head_dim

    def nodes(self) -> tuple[Node, Node]:
        """rope_y [grid_h, 2, head_dim / 4] and rope_x [grid_w, 2, head_dim / 4], fp32 unless the model's are fp64."""
        quarter = self.head_dim // 4
        y = [self._cut(table, 1, 0, quarter) for table in self.both]
        x = [self._cut(table, 0, quarter, 2 * quarter) for table in self.both]
        return self._call(aten.stack.default, y, 1), self._call(aten.stack.default, x, 1)

    def _cut(self, table: Node, across: int, start: int, stop: int) -> Node:
        """The channels of one axis of the grid, [grid_h or grid_w, head_dim / 4], read off the other axis's first."""
        rank = len(shape(table))
        for dim in reversed(range(rank - 1)):
            if dim != rank + self.token:
                table = self._call(aten.select.int, table, dim, 0)
        table = self._call(aten.reshape.default, table, [*self.grid, self.head_dim])
        table = self._call(aten.select.int, table, across, 0)
        table = self._call(aten.slice.Tensor, table, 1, start, stop)
        dtype = table.meta["val"].dtype
        wide = torch.promote_types(dtype, torch.float32)
        return table if dtype == wide else self._call(aten.to.dtype, table, wide)

    def _call(self, target: OpOverload, tensor: Node | list[Node], *args: object) -> Node:
        first = tensor if isinstance(tensor, Node) else tensor[0]
        for user in first.users:
            if _OWN in user.meta and user.target is target and user.args == (tensor, *args):
                return user
        node = self.insertion.call(target, tensor, *args)
        node.meta[_OWN] = True
        return node


def _outermost(view: GraphView, graph: Graph, tables: RopeTables) -> tuple[Node, Node]:
    """cos and sin in the outermost graph, of those around a graph, that both can be read in."""
    around = [graph]
    while around[-1] in view.entrances:
        around.append(view.entrances[around[-1]].graph)
    for outer in reversed(around):
        cos, sin = (node if node.graph is outer else view.alias_in(node, outer) for node in (tables.cos, tables.sin))
        if cos is not None and sin is not None:
            return cos, sin
    raise AssertionError("cos and sin can be read where the site is: the patterns have checked it")
