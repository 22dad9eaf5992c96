"""Take out what does nothing at inference, so that later passes need not look through it.

Covered: dropout that is off, `to` and `contiguous` that give back their argument, metadata assertions of torch.export.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from jetvit.passes.graph.base import PassResult
from jetvit.passes.graph.regions import submodules
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.patterns.calls import argument
from jetvit.patterns.storage import relies_on_strides

aten = torch.ops.aten


@dataclass(frozen=True)
class Normalize:
    """Remove operators that return their argument."""

    name: ClassVar[str] = "normalize"

    def __call__(self, graph: RewritableGraph) -> PassResult:
        fired = 0
        for module in submodules(graph.module):
            for node in list(module.graph.nodes):
                if node.target is aten._assert_tensor_metadata.default:
                    module.graph.erase_node(node)
                    fired += 1
                elif node.op == "call_function" and _returns_argument(node):
                    node.replace_all_uses_with(node.args[0])
                    module.graph.erase_node(node)
                    fired += 1
        return PassResult(fired)


def _returns_argument(node: Node) -> bool:
    """True for a call that yields its first argument itself."""
    if node.target is aten.dropout.default:
        return not argument(node, 2, "train") or argument(node, 1, "p") == 0
    before = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], Node) else None
    if not isinstance(before, torch.Tensor):
        return False
    if node.target is aten.to.dtype:
        return before.dtype == node.args[1] and not node.kwargs and len(node.args) == 2
    if node.target is aten.contiguous.default:
        known = all(isinstance(size, int) for size in before.shape) and before.is_contiguous()
        return known and not node.kwargs and not relies_on_strides(node)
    return False
