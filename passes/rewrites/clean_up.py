"""Leave no trace of a rewrite: transposes that cancel, views that do nothing, nodes that nobody reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Graph, Node

from jetvit.passes.graph.base import PassResult
from jetvit.passes.graph.regions import drop_dead_code, submodules
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.patterns.aten_sets import PERMUTES
from jetvit.patterns.calls import permutation, shape
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import same_sizes
from jetvit.patterns.storage import relies_on_strides, storage, written
from jetvit.patterns.token_grid import TOKEN_GRID

aten = torch.ops.aten
_VIEWS = {aten.view.default, aten.reshape.default}  # alone of RESHAPES they take the whole shape of the result
_PERMUTES = PERMUTES - {aten.t.default, aten.mT.default}  # transposed weights stay as the model wrote them


@dataclass(frozen=True)
class CleanUp:
    """Merge chains of permutations, drop identities and dead code. Leaves alone what is written to in place."""

    name: ClassVar[str] = "clean-up"

    def __call__(self, graph: RewritableGraph) -> PassResult:
        fired = 0
        view = GraphView(graph.module, graph.ambient_autocast)
        mutated = written(view)
        for module in submodules(graph.module):
            for node in list(module.graph.nodes):
                # Without the copy that a hint makes, its result would change with what it was copied from.
                memory = [node, node.args[0]] if node.target is TOKEN_GRID else [node]
                if not any(storage(each, view) in mutated for each in memory):
                    fired += _simplify(module.graph, node)
            before = len(module.graph.nodes)
            drop_dead_code(module.graph)
            fired += before - len(module.graph.nodes)
            module.recompile()
        return PassResult(fired)


def _simplify(graph: Graph, node: Node) -> int:
    if (order := _permutation(node)) is not None:
        return _merge_permutations(graph, node, order)
    if node.target in _VIEWS and same_sizes(shape(node), shape(node.args[0])):
        node.replace_all_uses_with(node.args[0])
        return 1
    back = node.target in _VIEWS and node.args[0].target in _VIEWS
    if back and same_sizes(shape(node), shape(node.args[0].args[0])) and not relies_on_strides(node):
        node.replace_all_uses_with(node.args[0].args[0])
        return 1
    if node.target is TOKEN_GRID and (_same_strides(node) or not relies_on_strides(node)):
        node.replace_all_uses_with(node.args[0])
        return 1
    if node.target is aten.contiguous.default and not node.kwargs and _is_idle(node):
        node.replace_all_uses_with(node.args[0])
        return 1
    return 0


def _merge_permutations(graph: Graph, node: Node, order: list[int]) -> int:
    """One permutation for two; none if they cancel."""
    base, merged = node.args[0], 0
    while (inner := _permutation(base)) is not None:
        order = [inner[dim] for dim in order]
        base, merged = base.args[0], merged + 1
    if order == sorted(order):
        node.replace_all_uses_with(base)
        return 1
    if merged:
        with graph.inserting_before(node):
            new = graph.call_function(aten.permute.default, (base, order))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        return 1
    return 0


def _permutation(node: Node) -> list[int] | None:
    """The order of axes that a permutation with explicit axes makes, or None."""
    return permutation(node) if node.target in _PERMUTES and shape(node) else None


def _same_strides(node: Node) -> bool:
    return same_sizes(node.meta["val"].stride(), node.args[0].meta["val"].stride())


def _is_idle(node: Node) -> bool:
    """True if `contiguous` does nothing, or nothing that a reader of its result relies on."""
    base = node.args[0]
    if str(base.target).startswith("jetvit."):
        return True
    value = base.meta["val"]
    return all(isinstance(size, int) for size in value.shape) and value.is_contiguous() and not relies_on_strides(node)
