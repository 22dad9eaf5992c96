"""A symbolic size as a node: computed from the shapes of the graph's inputs."""

from __future__ import annotations

import operator
from typing import Any

import sympy
import torch
from torch.fx import Node, Proxy
from torch.fx.proxy import GraphAppendingTracer, TraceError

from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.patterns.errors import RewriteError
from jetvit.torch_private import PythonReferenceAnalysis, pytree, sympy_interp


def size_node(graph: RewritableGraph, size: torch.SymInt, anchor: Node | None = None) -> Node:
    """A node of the outer graph that yields a symbolic size; one that is there already is taken again.

    Args:
        graph: the graph.
        size: the size.
        anchor: a node of the outer graph that comes after it. Of a size that the model computes by way of floats, the
            model's own node before the anchor is taken.
    Raises:
        RewriteError: a symbol of the size cannot be read off the size of an input, or its formula not be written.
    """
    nodes = graph.module.graph.nodes
    placeholders = [node for node in nodes if node.op == "placeholder"]
    place = next(node for node in nodes if node.op not in ("placeholder", "get_attr"))
    for node in nodes:
        if node.op == "call_function" and node.meta.get("jetvit_size") == size.node.expr:
            return node
    before = set(nodes)
    tracer = GraphAppendingTracer(graph.module.graph)
    with graph.module.graph.inserting_before(place):
        symbols = {
            symbol: Proxy(_symbol(graph, placeholders, symbol, size), tracer) for symbol in size.node.expr.free_symbols
        }
        try:
            result = sympy_interp(PythonReferenceAnalysis, symbols, size.node.expr).node
        except TraceError:  # sympy asks the nodes for their values
            for node in reversed([node for node in nodes if node not in before]):
                graph.module.graph.erase_node(node)
            return _own_node(graph, size, anchor)
    for node in [node for node in nodes if node not in before and node.op == "call_function"]:
        node.meta["val"] = node.target(*pytree.tree_map_only(Node, lambda each: each.meta["val"], node.args))
    result.meta["jetvit_size"] = size.node.expr
    return result


def _own_node(graph: RewritableGraph, size: torch.SymInt, anchor: Node | None) -> Node:
    for node in graph.module.graph.nodes:
        if node is anchor:
            break
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, torch.SymInt) and value.node.expr == size.node.expr:
            return node
    raise RewriteError(
        f"the size {size} cannot be computed in the graph",
        why="the model computes it by way of floats",
        do="capture with fixed image sizes",
    )


def _symbol(graph: RewritableGraph, placeholders: list[Node], symbol: sympy.Symbol, size: Any) -> Node:
    call = graph.module.graph.call_function
    for node in placeholders:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt) and value.node.expr == symbol:
            return node
        for dim, length in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if not isinstance(length, torch.SymInt) or (line := _line(length.node.expr, symbol)) is None:
                continue
            found = call(torch.ops.aten.sym_size.int, (node, dim))
            slope, offset = line
            found = call(operator.sub, (found, offset)) if offset else found
            return call(operator.floordiv, (found, slope)) if slope != 1 else found
    raise RewriteError(
        f"the size {size} cannot be computed in the graph",
        why=f"{symbol} cannot be read off the size of an input",
        do="capture with fixed image sizes",
    )


def _line(length: sympy.Expr, symbol: sympy.Symbol) -> tuple[int, int] | None:
    """(slope, offset) of a length that is slope * symbol + offset, such as `8 * Dim("rows")`; None for any other."""
    if length.free_symbols != {symbol}:
        return None
    slope = sympy.diff(length, symbol)
    offset = sympy.expand(length - slope * symbol)
    return (int(slope), int(offset)) if slope.is_Integer and slope > 0 and offset.is_Integer else None
