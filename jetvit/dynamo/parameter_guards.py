"""Compiled graphs that hold for one set of parameters: they check, at every call, that it is these that they get."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from jetvit.passes.graph.rewritable import DynamoGraph
from jetvit.patterns.errors import PlanError
from jetvit.torch_private import edit_count

Compiled = Callable[..., Any]


def tie(compiled: Compiled, graph: DynamoGraph, what: str) -> Compiled:
    """Refuse to run on parameters other than those that were compiled for, or on edited ones.

    Identity and version of each parameter are compared at every call; both are a few attribute reads.

    Args:
        compiled: the graph, compiled.
        graph: the graph.
        what: belongs to the parameters, in words.
    """
    known = [
        (position, weakref.ref(graph.inputs[node]), edit_count(graph.inputs[node]), graph.tensor_names[node])
        for position, node in _parameters(graph)
    ]

    def checked(*inputs: Any) -> Any:
        for position, reference, version, name in known:
            if inputs[position] is not reference() or edit_count(inputs[position]) != version:
                raise PlanError(
                    f"{what} to other parameters than these",
                    why=f"{name} is another tensor than at compilation, or was edited since",
                    do="call torch.compiler.reset() before a change of weights, or compile each model with a plan of "
                    "its own",
                )
        return compiled(*inputs)

    return checked


def for_each_set_of_weights(
    compiled: Compiled, graph: DynamoGraph, anew: Callable[[Sequence[Any]], Compiled]
) -> Compiled:
    """Compile a graph again for other parameters of the same shapes, which Dynamo takes for the same code.

    So do two instances of a class, and the blocks of a model behind a graph break. Edits are refused as by `tie`. A
    graph with open sizes is compiled for one set only: outside of Dynamo its symbols have no meaning.

    Args:
        compiled: the graph, compiled and tied.
        graph: the graph.
        anew: compiles it for other inputs.
    """
    values = [node.meta.get("val") for node in graph.module.graph.find_nodes(op="placeholder")]
    sizes = [size for value in values if isinstance(value, torch.Tensor) for size in value.shape]
    if any(isinstance(each, torch.SymInt | torch.SymFloat) for each in (*values, *sizes)):
        return compiled
    parameters = list(_parameters(graph))
    positions = [position for position, _ in parameters]  # and no node, which would keep the graph
    first = [weakref.ref(graph.inputs[node]) for _, node in parameters]
    variants: list[tuple[list[weakref.ref[Any]], Compiled]] = [(first, compiled)]

    def dispatch(*inputs: Any) -> Any:
        weights = [inputs[position] for position in positions]
        for references, variant in variants:
            if all(reference() is weight for reference, weight in zip(references, weights, strict=True)):
                return variant(*inputs)
        variants[:] = [each for each in variants if all(reference() is not None for reference in each[0])]
        variants.append(([weakref.ref(weight) for weight in weights], anew(inputs)))
        return variants[-1][1](*inputs)

    return dispatch


def _parameters(graph: DynamoGraph) -> Iterator[tuple[int, Any]]:
    """The placeholders that are parameters and buffers, with their positions."""
    placeholders = enumerate(graph.module.graph.find_nodes(op="placeholder"))
    return ((position, node) for position, node in placeholders if node in graph.inputs)
