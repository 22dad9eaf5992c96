"""Exact: what no input has a part in is computed once.

Covered: interpolated position embeddings and rotary tables at a fixed image size, masks, reparameterised weights. Only
where the graph owns its weights; what is computed from constants alone is folded in every frontend. Views are left in
place, so that a token that is expanded over the batch is not stored for every image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Interpreter, Node

from jetvit.passes.graph.base import PassResult
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.patterns.aten_sets import LAYOUTS
from jetvit.patterns.regions import REGION_OPERANDS, GraphView
from jetvit.patterns.storage import storage, written
from jetvit.torch_private import OpOverload, schema

aten = torch.ops.aten
_FREE = LAYOUTS | {aten.expand_as.default, aten.sym_size.int}
# What was in memory before: it must not get into a file.
_UNINITIALISED = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}


@dataclass(frozen=True)
class FoldConstants:
    """Replace the largest constant parts of a graph by their values.

    Args:
        max_elements: the size of the largest tensor that is stored.
    """

    max_elements: int = 64 * 1024 * 1024
    name: ClassVar[str] = "fold-constants"

    def __call__(self, graph: RewritableGraph) -> PassResult:
        view = GraphView(graph.module, graph.ambient_autocast)
        constant = _constant_nodes(graph, view)
        live = set(view.nodes)
        wanted = [
            node for node in graph.module.graph.nodes if node in constant and self._is_worth(node, constant, live)
        ]
        for node, value in _evaluate(graph, wanted).items():
            node.replace_all_uses_with(graph.add_tensor(f"folded.value_{node.name}", value))
        return PassResult(len(wanted))

    def _is_worth(self, node: Node, constant: set[Node], live: set[Node]) -> bool:
        """A computed tensor that something not constant reads, directly or through a view."""
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            return False
        if node.target in _FREE and node.args[0].target not in REGION_OPERANDS:  # a region's results are computed
            return False
        if value.numel() > self.max_elements:
            return False
        return any(user in live and (user not in constant or user.target in _FREE) for user in node.users)


def _constant_nodes(graph: RewritableGraph, view: GraphView) -> set[Node]:
    """Nodes of the outer graph whose value depends on constants, and on weights that the graph owns, alone."""
    constant: set[Node] = set()
    mutated = written(view)
    for node in graph.module.graph.nodes:
        if storage(node, view) in mutated:
            continue
        if node.op in ("placeholder", "get_attr"):
            known = node in graph.tensor_names
            is_weight = node.op == "placeholder" or str(node.target).startswith("jetvit_")
            if known and (graph.owns_weights or not is_weight) and graph.tensor(node) is not None:
                constant.add(node)
        elif (
            node.op == "call_function"
            and _is_pure(node, graph.module)
            and _is_static(node)
            and not view.under_autocast(node)
            and all(used in constant for used in _operands(node))
        ):
            constant.add(node)
    return constant


def _operands(node: Node) -> list[Node]:
    """The tensors that a node reads: of a region what goes into it, and not its graph."""
    if node.target not in REGION_OPERANDS:
        return node.all_input_nodes
    return [each for each in node.args[REGION_OPERANDS[node.target] :] if isinstance(each, Node)]


def _is_pure(node: Node, module: GraphModule) -> bool:
    """True if a call only computes its result, the same each time; for a region, if all calls in it do."""
    target = node.target
    if target in REGION_OPERANDS:
        region = module.get_submodule(node.args[REGION_OPERANDS[target] - 1].target)
        return all(_is_pure(inner, region) for inner in region.graph.nodes if inner.op == "call_function")
    if not isinstance(target, OpOverload):
        return "getitem" in str(target)
    if torch.Tag.nondeterministic_seeded in target.tags or target.overloadpacket in _UNINITIALISED:
        return False
    return not schema(target).is_mutable and target.namespace == "aten"


def _is_static(node: Node) -> bool:
    values = node.meta.get("val")
    values = values if isinstance(values, list | tuple) else [values]
    return all(isinstance(v, torch.Tensor) and all(isinstance(s, int) for s in v.shape) for v in values)


def _evaluate(graph: RewritableGraph, wanted: list[Node]) -> dict[Node, torch.Tensor]:
    """The values of some constant nodes."""
    interpreter = Interpreter(graph.module)
    environment: dict[Node, Any] = {}
    interpreter.env = environment
    results = {}
    needed = _needed(wanted)
    with torch.no_grad():
        for node in graph.module.graph.nodes:
            if node not in needed:
                continue
            if node.op in ("placeholder", "get_attr") and node in graph.tensor_names:
                environment[node] = graph.tensor(node)
            else:  # a call, or the graph of a region
                environment[node] = interpreter.run_node(node)
        for node in wanted:
            results[node] = environment[node].detach().clone()
    return results


def _needed(wanted: list[Node]) -> set[Node]:
    needed: set[Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    return needed
