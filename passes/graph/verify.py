"""The check after every pass: the graph is well formed and yields the same shapes, dtypes and devices as before."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from jetvit.passes.graph.propagation import Propagation, same_type
from jetvit.passes.graph.regions import submodules
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.passes.graph.source_lines import first_lines
from jetvit.patterns.errors import RewriteError
from jetvit.torch_private import pytree


class Verification:
    """The shapes and dtypes of a graph's results, to be compared after each pass.

    Attributes:
        expected: the recorded value of each result, when this was made.
    """

    def __init__(self, graph: RewritableGraph):
        self._graph = graph
        self._propagation = Propagation(graph)
        results = pytree.tree_leaves(graph.module.graph.output_node().args[0])
        self.expected = [result.meta.get("val") if isinstance(result, Node) else result for result in results]

    def check(self, name: str) -> None:
        """Lint the changed graph, run it on fake tensors, and compare its results.

        The recorded values of the nodes are brought up to date on the way.

        Raises:
            RewriteError: the pass `name` broke the graph. The user's model is not affected: passes work on a copy.
        """
        try:
            for module in submodules(self._graph.module):
                module.graph.lint()
                module.recompile()
            found = self._propagation.run()
        except Exception as error:
            raise RewriteError(
                f"the pass {name} left a graph that does not run",
                why=first_lines(error, 1),
                do="please report this with the model's configuration; the model itself is unchanged",
            ) from error
        for position, (before, after) in enumerate(zip(self.expected, found, strict=True)):
            if not isinstance(before, torch.Tensor):
                continue
            if not (isinstance(after, torch.Tensor) and same_type(before, after)):
                raise RewriteError(
                    f"the pass {name} changed result {position} of the graph",
                    why=f"it was {_describe(before)} and is {_describe(after)}",
                    do="please report this with the model's configuration; the model itself is unchanged",
                )


def _describe(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} on {value.device}"
