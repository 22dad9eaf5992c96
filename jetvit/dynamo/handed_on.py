"""Token grids that one graph of a model hands to the next, where Dynamo breaks the model into several.

What a compiled graph returns is remembered, tensor by tensor and at every call, with what its axes hold. A graph that
gets such a tensor is compiled for that grid, and checks at every call that it gets the same one: 4×6 and 6×4 tokens
have one length. A tensor that other code made, or edited, is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sympy import Symbol
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils.weak import WeakIdKeyDictionary

from jetvit.dynamo.parameter_guards import Compiled
from jetvit.passes.graph.rewritable import DynamoGraph
from jetvit.patterns.errors import MEND_THE_BREAK, PlanError
from jetvit.patterns.known_axes import describe, entries, evaluate
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import Size, expression, is_static
from jetvit.patterns.tokens import Known, Tokens
from jetvit.patterns.walk import LayoutWalk
from jetvit.torch_private import edit_count

_RESULTS: Any = WeakIdKeyDictionary()  # tensor → its count of edits, and what is known of it


def told(tensor: Any) -> Known | None:
    """Return what is known of a tensor that a compiled graph returned and nothing has edited since; else None."""
    edits, known = _RESULTS.get(tensor, (None, None)) if isinstance(tensor, Tensor) else (None, None)
    return known if known is not None and edits == edit_count(tensor) else None


def learn(graph: DynamoGraph, inputs: Sequence[Any]) -> None:
    """Note in a graph what is known of the inputs that it is compiled for; their token counts become fixed."""
    graph.known = {
        node: known
        for node, example in zip(graph.module.graph.find_nodes(op="placeholder"), inputs, strict=True)
        if node not in graph.inputs
        and (known := told(example)) is not None
        and not free_unbacked_symbols(node.meta["val"])
    }
    for node, known in graph.known.items():
        for size, each in zip(node.meta["val"].shape, known, strict=True):
            if each is not None:
                int(size)  # a guard: another count compiles anew


def hand_on(compiled: Compiled, graph: DynamoGraph, original: Results) -> Compiled:
    """Run a compiled graph with its inputs checked and its results remembered.

    Args:
        compiled: the graph, compiled.
        graph: the rewritten graph.
        original: the results of the graph before it was rewritten.
    """
    expected: list[tuple[int, Known]] = []
    if any(str(node.target).startswith("jetvit.") for node in graph.module.graph.nodes):
        inputs = enumerate(graph.module.graph.find_nodes(op="placeholder"))
        expected = [(index, graph.known[node]) for index, node in inputs if node in graph.known]
    if not expected and not original.known:
        return compiled

    def handed_on(*inputs: Any) -> Any:
        for index, known in expected:
            if (found := told(inputs[index])) != known:
                raise _other_grid(known, found)
        outputs = compiled(*inputs)
        original.remember(inputs, outputs)
        return outputs

    return handed_on


class Results:
    """The axes of a graph's results, as far as they are known.

    Attributes:
        known: of each result, by its position; sizes may be symbols.
    """

    def __init__(self, graph: DynamoGraph):
        walk = LayoutWalk(GraphView(graph.module, graph.ambient_autocast), graph.tensor_names, entries(graph))
        symbols = {symbol: where for symbol, *where in _symbols(graph)}
        self.known: dict[int, Known] = {}
        used: set[Symbol] = set()
        for index, node in enumerate(graph.module.graph.output_node().args[0]):
            known = describe(walk.of(node), node) if isinstance(node, torch.fx.Node) else None
            sizes = [size for each in known or () if each is not None for size in each.sizes()]
            needed = set().union(*(expression(size).free_symbols for size in sizes))
            if known is not None and needed <= symbols.keys():
                self.known[index] = known
                used |= needed
        self._symbols = [(symbol, *where) for symbol, where in symbols.items() if symbol in used]
        self._fixed: dict[tuple[int, ...], dict[int, Known]] = {}

    def remember(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Remember the results of a call."""
        values = tuple(inputs[at] if dim is None else inputs[at].shape[dim] for _, at, dim in self._symbols)
        if values not in self._fixed:
            self._fixed[values] = self._evaluate(values)
        for index, known in self._fixed[values].items():
            _RESULTS[outputs[index]] = edit_count(outputs[index]), known

    def _evaluate(self, values: tuple[int, ...]) -> dict[int, Known]:
        where = {symbol: value for (symbol, _, _), value in zip(self._symbols, values, strict=True)}

        def number(size: Size) -> int:
            return int(size) if is_static(size) else int(expression(size).xreplace(where))

        return {index: evaluate(known, number) for index, known in self.known.items()}


def _symbols(graph: DynamoGraph) -> Iterator[tuple[Symbol, int, int | None]]:
    """Each symbol of a graph's sizes, and where its value is read: an input that is a number, or an axis of one."""
    seen: set[Symbol] = set()
    for index, node in enumerate(graph.module.graph.find_nodes(op="placeholder")):
        value = node.meta.get("val")
        sizes = enumerate(value.shape) if isinstance(value, Tensor) else [(None, value)]
        for dim, size in sizes:
            if isinstance(size, torch.SymInt) and (symbol := expression(size)).is_Symbol and symbol not in seen:
                seen.add(symbol)
                yield symbol, index, dim


def _other_grid(expected: Known, found: Known | None) -> PlanError:
    grids = [
        next((f"{each.grid[0]}×{each.grid[1]}" for each in known or () if isinstance(each, Tokens)), "unknown")
        for known in (expected, found)
    ]
    return PlanError(
        "a graph that a plan was applied to gets tokens of another grid than it was compiled for",
        why=f"the model is broken into several graphs, and the token grid was {grids[0]} and is {grids[1]} now",
        do=f"{MEND_THE_BREAK}, or call torch.compiler.reset() before another size",
    )
