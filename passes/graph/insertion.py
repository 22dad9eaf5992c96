"""Putting nodes into a captured graph: with shapes, with the stack of what they stand for, and across regions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.fx import Graph, Node

from jetvit.passes.graph.rewritable import RewritableGraph, on_fake_tensors
from jetvit.passes.graph.symbols import size_node
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import Size, is_static
from jetvit.torch_private import pytree

_INHERITED = ("nn_module_stack", "stack_trace", "source_fn_stack", "custom")


class Insertion:
    """New nodes at one place of a graph.

    Args:
        graph: the graph to change.
        anchor: new nodes go before this one.
        view: a view of the graph, to bring values into regions.
        origin: new nodes say that they come from where this one came from; the anchor, if it is not given.
    """

    def __init__(self, graph: RewritableGraph, anchor: Node, view: GraphView, origin: Node | None = None):
        self.graph, self.anchor, self.view = graph, anchor, view
        self.origin = anchor if origin is None else origin
        self._mode = graph.fake_mode

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """A call before the anchor; its `val` is computed on fake tensors, without a guard on symbolic sizes."""
        owner = self.anchor.graph
        with owner.inserting_before(self.anchor):
            node = owner.call_function(target, args, kwargs)
        values, named = pytree.tree_map_only(Node, lambda each: each.meta["val"], (args, kwargs))
        with on_fake_tensors(self._mode), self._autocast():
            node.meta["val"] = target(*values, **named)
        node.meta |= {key: self.origin.meta[key] for key in _INHERITED if key in self.origin.meta}
        return node

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        """The autocast regions that the anchor stands in."""
        with ExitStack() as regions:
            for device in ("cpu", "cuda"):
                dtype = self.view.autocast_dtype(self.anchor, device)
                regions.enter_context(torch.autocast(device, dtype, enabled=dtype is not None, cache_enabled=False))
            yield

    def bring(self, node: Node) -> Node:
        """A value from outside into the region that the anchor stands in, threaded through the region's operands."""
        return _bring(self.view, node, self.anchor.graph)

    def size(self, size: Size) -> int | Node:
        """A size as an argument: an int, or a node that computes it from the inputs' shapes."""
        if isinstance(size, int) or is_static(size):
            return int(size)
        anchor = self.anchor
        while anchor.graph in self.view.entrances:
            anchor = self.view.entrances[anchor.graph]
        return self.bring(size_node(self.graph, size, anchor))

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """The tensor in a dtype; itself if it has it already."""
        return node if node.meta["val"].dtype == dtype else self.call(torch.ops.aten.to.dtype, node, dtype)


def _bring(view: GraphView, node: Node, graph: Graph) -> Node:
    """The node of a value inside a graph: itself, what stands for it there, or a new operand of the region."""
    if node.graph is graph:
        return node
    node = view.resolve(node)
    if node.graph is graph:
        return node
    if (alias := view.alias_in(node, graph)) is not None:
        return alias
    call = view.entrances[graph]
    outer = _bring(view, node, call.graph)
    last = [each for each in graph.nodes if each.op == "placeholder"][-1]
    with graph.inserting_after(last):
        placeholder = graph.placeholder(f"{node.name}_in")
    placeholder.meta["val"] = node.meta["val"]
    call.args = (*call.args, outer)
    view.bind(placeholder, outer)
    return placeholder
