"""One linear reading of a graph whose autocast and no_grad regions may be submodules.

Export wraps such a region into a submodule, Dynamo leaves flat enter and exit nodes. `GraphView` reads both as one list
of nodes in the order of execution, resolves what a region's placeholder or result stands for, and tells which autocast
dtype holds at a node.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from jetvit.torch_private import OpOverload, enter_autocast, exit_autocast, schema

_higher_order = torch.ops.higher_order

REGION_OPERANDS = {_higher_order.wrap_with_autocast: 5, _higher_order.wrap_with_set_grad_enabled: 2}
"""Region operators, and how many arguments stand before the region's operands (the last of them is the submodule)."""

# Nodes that look at a tensor without using its values.
OBSERVERS = {torch.ops.aten._assert_tensor_metadata.default, torch.ops.aten.sym_size.int}


class GraphView:
    """A graph and its regions as one list of live nodes.

    Attributes:
        nodes: every node that the outputs depend on, in the order of execution, regions inlined.
        owner: the GraphModule that holds each graph.
        entrances: for the graph of a region, the node that calls it.
    """

    def __init__(self, module: GraphModule, ambient_autocast: Mapping[str, torch.dtype] | None = None):
        self.module = module
        self.owner: dict[Graph, GraphModule] = {}
        self.entrances: dict[Graph, Node] = {}
        self._same: dict[Node, Node] = {}
        self._autocast: dict[Node, dict[str, torch.dtype]] = {}
        self._state: dict[str, torch.dtype] = dict(ambient_autocast or {})
        ordered = list(self._walk(module))
        live = self._live(ordered)
        self.nodes = [node for node in ordered if node in live]
        self._users: dict[Node, list[Node]] = defaultdict(list)
        for node in self.nodes:
            if node in self._same or self._is_region(node) or node.target in OBSERVERS:
                continue
            if node.op == "output" and node.graph is not module.graph:
                continue
            for source in dict.fromkeys(self.resolve(used) for used in node.all_input_nodes):
                self._users[source].append(node)

    def resolve(self, node: Node) -> Node:
        """The node that really yields this value: through region placeholders and region results."""
        while node in self._same:
            node = self._same[node]
        return node

    def visible(self, node: Node, graph: Graph) -> bool:
        """True if a value can be brought into a graph: it is made there or in a graph around it."""
        while node.graph is not graph:
            if graph not in self.entrances:
                return False
            graph = self.entrances[graph].graph
        return True

    def reachable(self, node: Node, graph: Graph) -> bool:
        """True if a value can be brought into a graph: it is visible there, or a region that is gives it out."""
        while not self.visible(node, graph):
            if self.alias_in(node, graph) is not None:
                return True
            if graph not in self.entrances:
                return False
            graph = self.entrances[graph].graph
        return True

    def alias_in(self, node: Node, graph: Graph) -> Node | None:
        """The node of a graph that stands for a value from another one, if there is one already."""
        return next((each for each in graph.nodes if each in self._same and self.resolve(each) is node), None)

    def bind(self, placeholder: Node, operand: Node) -> None:
        """Note that a region's new placeholder stands for a value from outside."""
        self._same[placeholder] = operand

    def users(self, node: Node) -> list[Node]:
        """The live nodes that use the value of a node, wherever they stand; size and metadata checks do not count."""
        return self._users.get(self.resolve(node), [])

    def autocast_dtype(self, node: Node, device_type: str) -> torch.dtype | None:
        """The dtype of the autocast region around a node for a device type, None outside of one."""
        return self._autocast[node].get(device_type)

    def under_autocast(self, node: Node) -> bool:
        """True if an autocast region of any device is open at a node."""
        return bool(self._autocast[node])

    @staticmethod
    def _is_region(node: Node) -> bool:
        return node.op == "call_function" and node.target in REGION_OPERANDS

    def _walk(self, module: GraphModule) -> Iterator[Node]:
        self.owner[module.graph] = module
        entered: dict[Node, dict[str, torch.dtype]] = {}
        for node in module.graph.nodes:
            self._autocast[node] = self._state
            yield node
            if node.target is enter_autocast:
                entered[node] = self._state
                self._state = _with_autocast(self._state, *node.args)
            elif node.target is exit_autocast:
                self._state = entered[node.args[0]]
            elif self._is_region(node):
                yield from self._walk_region(module, node)
            elif node.target is operator.getitem and self._is_region(self.resolve(node.args[0])):
                region = self._region_module(module, self.resolve(node.args[0]))
                results = region.graph.output_node().args[0]
                result = results[node.args[1]] if isinstance(results, list | tuple) else results
                if isinstance(result, Node):
                    self._same[node] = result

    def _walk_region(self, module: GraphModule, node: Node) -> Iterator[Node]:
        region = self._region_module(module, node)
        self.entrances[region.graph] = node
        operands = node.args[REGION_OPERANDS[node.target] :]
        placeholders = [inner for inner in region.graph.nodes if inner.op == "placeholder"]
        for placeholder, operand in zip(placeholders, operands, strict=True):
            if isinstance(operand, Node):
                self._same[placeholder] = operand
        before = self._state
        if node.target is _higher_order.wrap_with_autocast:
            self._state = _with_autocast(self._state, *node.args[:4])
        yield from self._walk(region)
        self._state = before

    @staticmethod
    def _region_module(module: GraphModule, node: Node) -> GraphModule:
        attribute = node.args[REGION_OPERANDS[node.target] - 1]
        return module.get_submodule(attribute.target)

    def _live(self, ordered: list[Node]) -> set[Node]:
        """The nodes that the outputs, or a mutation, depend on."""
        stack = [node for node in ordered if self._anchors(node)]
        live: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in live:
                continue
            live.add(node)
            if node in self._same:
                stack.append(self._same[node])
            stack.extend(node.all_input_nodes)
        return live

    def _anchors(self, node: Node) -> bool:
        if node.op in ("placeholder", "output"):
            return node.graph is self.module.graph
        mutates = isinstance(node.target, OpOverload) and schema(node.target).is_mutable
        return mutates or node.target in (enter_autocast, exit_autocast) or self._is_region(node)


def _with_autocast(
    state: Mapping[str, torch.dtype], device_type: Any, dtype: Any, enabled: Any, cache: Any = None
) -> dict[str, torch.dtype]:
    """The autocast state inside a region; a missing dtype means the device's default."""
    inside = {device: kept for device, kept in state.items() if device != device_type}
    if enabled:
        inside[device_type] = dtype if dtype is not None else torch.get_autocast_dtype(device_type)
    return inside
