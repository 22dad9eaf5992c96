"""The check after every pass: the graph is well formed and yields the same shapes, dtypes and devices as before."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from jetvit.passes.capture import RegionInterpreter
from jetvit.passes.graph import RewritableGraph, on_fake_tensors
from jetvit.passes.regions import submodules
from jetvit.passes.source_lines import first_lines
from jetvit.patterns.errors import RewriteError
from jetvit.patterns.sizes import same
from jetvit.torch_private import pytree


def result_types(graph: RewritableGraph) -> list[Any]:
    """What the graph yields: the recorded value of each result."""
    results = pytree.tree_leaves(graph.module.graph.output_node().args[0])
    return [result.meta.get("val") if isinstance(result, Node) else result for result in results]


def verify(graph: RewritableGraph, expected: list[Any], name: str) -> None:
    """Lint a changed graph, run it on fake tensors, and compare its results with those before the pass.

    The recorded values of the nodes are brought up to date on the way.

    Raises:
        RewriteError: the pass `name` broke the graph. The user's model is not affected: passes work on a copy.
    """
    try:
        for module in submodules(graph.module):
            module.graph.lint()
            module.recompile()
        found = _propagate(graph)
    except Exception as error:
        raise RewriteError(
            f"the pass {name} left a graph that does not run",
            why=first_lines(error, 1),
            do="please report this with the model's configuration; the model itself is unchanged",
        ) from error
    for position, (before, after) in enumerate(zip(expected, found, strict=True)):
        if isinstance(before, torch.Tensor) and not _same_type(before, after):
            raise RewriteError(
                f"the pass {name} changed result {position} of the graph",
                why=f"it was {_describe(before)} and is {_describe(after)}",
                do="please report this with the model's configuration; the model itself is unchanged",
            )


_READS_A_VALUE = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


class _Propagation(RegionInterpreter):
    """Runs a graph on fake tensors and notes every value."""

    def run_node(self, n: Node) -> Any:
        if "val" in n.meta and (n.target in _READS_A_VALUE or n.meta.get("unbacked_bindings")):
            return n.meta["val"]  # with the symbol that capture gave it: what depends on values cannot be run again
        result = super().run_node(n)
        if isinstance(result, torch.Tensor | torch.SymInt | list | tuple) and n.op != "output":
            n.meta["val"] = result
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self.fakes.get(target, value)


def _propagate(graph: RewritableGraph) -> list[Any]:
    nodes = graph.module.graph.nodes
    inputs = [node.meta["val"] for node in nodes if node.op == "placeholder"]
    interpreter = _Propagation(graph.module)
    interpreter.fakes = {
        node.target: node.meta["val"] for node in nodes if node.op == "get_attr" and "val" in node.meta
    }
    with on_fake_tensors(graph.fake_mode):
        return pytree.tree_leaves(interpreter.run(*inputs))


def _same_type(before: torch.Tensor, after: Any) -> bool:
    return (
        isinstance(after, torch.Tensor)
        and before.dtype == after.dtype
        and before.device == after.device
        and before.dim() == after.dim()
        and all(same(b, a) for b, a in zip(before.shape, after.shape, strict=True))
    )


def _describe(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} on {value.device}"
