"""The graph modules of a captured graph: its own and those of its autocast and no_grad regions."""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import Graph, GraphModule

from jetvit.patterns.regions import REGION_OPERANDS
from jetvit.torch_private import is_vmap


def submodules(module: GraphModule) -> Iterator[GraphModule]:
    """A graph module and, inside out, those of its regions."""
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in REGION_OPERANDS:
            attribute = node.args[REGION_OPERANDS[node.target] - 1]
            yield from submodules(module.get_submodule(attribute.target))
    yield module


def drop_dead_code(graph: Graph) -> None:
    """Take away the nodes that nobody reads and that do nothing else: what opens and closes a level of vmap stays."""
    graph.eliminate_dead_code(lambda node: node.is_impure() or is_vmap(node.target))
