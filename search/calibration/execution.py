"""A program run node by node: up to a node, on from there, or only as far as one value needs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from jetvit.torch_private import OpOverload, enter_autocast, exit_autocast, flat_inputs, schema

Batch = tuple[tuple[Any, ...], dict[str, Any]]
Values = dict[str, Any]
"""Values by node name. Two graphs of one model name their nodes alike, up to the first rewrite."""


class Execution:
    """The nodes of a program with its weights, which can be replaced.

    Attributes:
        weights: by placeholder, once `start` was called.
        order_matters: whether a node does more than to yield a value, such as to write into a tensor.

    Args:
        program: the program; nothing is changed.
    """

    def __init__(self, program: ExportedProgram):
        self.program = program
        self.nodes = list(program.graph_module.graph.nodes)
        self.by_name = {node.name: node for node in self.nodes}
        self.position = {node.name: place for place, node in enumerate(self.nodes)}
        specs = zip(self.nodes, program.graph_signature.input_specs, strict=False)
        self.weight_names = {node.name: str(spec.target) for node, spec in specs if spec.target is not None}
        self.weights: dict[str, Any] = {}
        self._last_use = _last_uses(self.nodes)
        self.order_matters = any(map(_acts_elsewhere, self.nodes))
        self._interpreter = Interpreter(program.graph_module, garbage_collect_values=False)

    def start(self, batch: Batch) -> Values:
        """The inputs of the model, without its weights; the weights are read the first time."""
        placeholders = (node.name for node in self.nodes if node.op == "placeholder")
        values = dict(zip(placeholders, flat_inputs(self.program, *batch), strict=True))
        self.weights = {name: values[name] for name in self.weight_names} | self.weights
        return {name: value for name, value in values.items() if name not in self.weight_names}

    def advance(self, values: Values, position: int, until: str) -> int:
        """Run the nodes from a position to just before a named one, in place, and drop the values that nobody reads.

        Returns the position of `until`.
        """
        stop = self.position[until]
        environment = self._environment(values)
        for node in self.nodes[position:stop]:
            if node.op != "placeholder":
                environment[node] = self._interpreter.run_node(node)
            for dead in self._last_use.get(node, ()):
                environment.pop(dead, None)
        values.clear()
        values.update({node.name: value for node, value in environment.items() if node.name not in self.weight_names})
        return stop

    def evaluate(self, name: str, values: Mapping[str, Any], position: int = 0) -> Any:
        """The value of a node ("output" is what the program yields); `values`, known at `position`, stay as they are.

        Only what the node needs is run, unless `order_matters`: then all that lies between, on copies.
        """
        target = self.by_name[name]
        between = self.nodes[position : self.position[name] + 1]
        if self.order_matters:
            environment = self._environment(copy.deepcopy(dict(values)) if position else values)
            needed = [node for node in between if node not in environment]
        else:
            environment = self._environment(values)
            needed = self._needed(target, environment.keys())
        for node in needed:
            environment[node] = self._interpreter.run_node(node)
            if node is not target:
                for dead in self._last_use.get(node, ()):
                    environment.pop(dead, None)
        return environment[target]

    def _environment(self, values: Mapping[str, Any]) -> dict[Node, Any]:
        """Weights, and the values of those nodes that are in this graph; the interpreter looks there."""
        known = {self.by_name[name]: value for name, value in values.items() if name in self.by_name}
        environment = {self.by_name[name]: value for name, value in self.weights.items()} | known
        self._interpreter.env = environment
        return environment

    def _needed(self, target: Node, known: Iterable[Node]) -> list[Node]:
        have = {node for node in known if node is not target}
        needed, waiting = set[Node](), [target]
        while waiting:
            node = waiting.pop()
            if node not in needed and node not in have:
                needed.add(node)
                waiting += node.all_input_nodes
        return [node for node in self.nodes[: self.position[target.name] + 1] if node in needed]


def _acts_elsewhere(node: Node) -> bool:
    """Report whether a node does more than to yield a value: it writes into a tensor, or changes autocast."""
    writes = isinstance(node.target, OpOverload) and schema(node.target).is_mutable
    return writes or node.target in (enter_autocast, exit_autocast)


def _last_uses(nodes: Sequence[Node]) -> dict[Node, list[Node]]:
    """For each node, the nodes whose values nobody reads after it."""
    last: dict[Node, Node] = {}
    for node in nodes:
        for used in node.all_input_nodes:
            last[used] = node
    result: dict[Node, list[Node]] = {}
    for used, node in last.items():
        result.setdefault(node, []).append(used)
    return result
