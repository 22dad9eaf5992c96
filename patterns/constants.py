"""The value of what neither an input nor a weight has a part in, such as the mask of a single image.

Models write such masks with loops, slices and in-place assignments. `ranges` proves what holds for every size; where
all sizes are numbers, running the few nodes tells the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch.fx import Node

from jetvit.patterns.regions import GraphView
from jetvit.patterns.storage import storage
from jetvit.torch_private import OpOverload, pytree

_LARGEST = 1 << 24
"""Entries of the largest tensor that is computed."""
_UNINITIALISED = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Constants:
    """Computes constants of a graph.

    Args:
        view: of the graph.
        sources: what each node depends on; nothing, for a constant.
        writes: the nodes that write in place, with what they write to.
    """

    def __init__(self, view: GraphView, sources: Mapping[Node, frozenset[str]], writes: Sequence[tuple[Node, Node]]):
        self.view, self.sources = view, sources
        self._writers: dict[Node, list[Node]] = {}
        for node, target in writes:
            self._writers.setdefault(target, []).append(node)
        self._values: dict[tuple[Node, ...], Any] = {}

    @cached_property
    def _order(self) -> dict[Node, int]:
        return {node: index for index, node in enumerate(self.view.nodes)}

    def value(self, node: Node, reader: Node) -> torch.Tensor | None:
        """The value, on the CPU, that a node has where another one reads it; None if that is not known.

        The reader matters: what is written in place after it has no part in the value.
        """
        node = self.view.resolve(node)
        needed = self._needed(node)
        if needed is None:
            return None
        last = self._order[reader]
        steps = tuple(step for step in sorted(needed, key=self._order.__getitem__) if self._order[step] < last)
        if (node, *steps) not in self._values:
            try:
                self._values[node, *steps] = self._compute(steps)[node]
            except RuntimeError:  # an operator that the CPU has not for this dtype
                self._values[node, *steps] = None
        return self._values[node, *steps]

    def _compute(self, steps: tuple[Node, ...]) -> dict[Node, Any]:
        values: dict[Node, Any] = {}
        with torch.no_grad():
            for node in steps:
                args, kwargs = pytree.tree_map(
                    lambda each: values[self.view.resolve(each)] if isinstance(each, Node) else _on_cpu(each),
                    (node.args, node.kwargs),
                )
                values[node] = node.target(*args, **kwargs)
        return values

    def _needed(self, wanted: Node) -> set[Node] | None:
        """The node, what it is made from, and all that writes to these tensors; None if one of them is no constant."""
        needed: set[Node] = set()
        stack = [wanted]
        while stack:
            node = self.view.resolve(stack.pop())
            if node in needed:
                continue
            if node not in self._order or not self._can_run(node):
                return None
            needed.add(node)
            stack.extend(node.all_input_nodes)
            stack.extend(self._writers.get(storage(node, self.view), ()))
        return needed

    def _can_run(self, node: Node) -> bool:
        target = node.target
        if node.op != "call_function" or self.sources.get(node, frozenset(["input"])):
            return False
        if self.view.under_autocast(node) or not isinstance(target, OpOverload) or target.namespace != "aten":
            return False
        if torch.Tag.nondeterministic_seeded in target.tags or target.overloadpacket.__name__ in _UNINITIALISED:
            return False
        value = node.meta.get("val")
        return isinstance(value, torch.Tensor) and all(isinstance(size, int) for size in value.shape) and (
            value.numel() <= _LARGEST
        )  # fmt: skip


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) else value
