"""Running a captured graph on images: whole, or from the cut in front of one attention site.

Scoring a choice at site i repeats nothing before that site: the values that are alive there are kept, and only the
rest of a rewritten graph is run. Nodes before the site have the same names in both graphs, which is how values are
handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from jetvit.patterns.axes import rank_of
from jetvit.patterns.errors import InputError
from jetvit.patterns.regions import GraphView
from jetvit.patterns.walk import LayoutWalk
from jetvit.patterns.wording import counted
from jetvit.search.calibration.execution import Batch, Execution, Values
from jetvit.torch_private import pytree

Output = int | str | Callable[[Any], Tensor] | None


def as_batches(batches: Sequence[Any], kwargs: Mapping[str, Any] | None) -> list[Batch]:
    """Batches as (args, kwargs) pairs.

    Args:
        batches: tensors [B, 3, H, W], or (args, kwargs) pairs.
        kwargs: keyword arguments for batches that are plain tensors.
    Raises:
        InputError: there is none, or their shapes differ.
    """
    pairs: list[Batch] = []
    for batch in batches:
        if isinstance(batch, Tensor):
            pairs.append(((batch,), dict(kwargs or {})))
        else:
            args, own = batch
            pairs.append((tuple(args), {**(kwargs or {}), **own}))
    if not pairs:
        raise InputError("there are no images to measure on", do="give at least one batch")
    shapes = [[tuple(t.shape) for t in pytree.tree_leaves(pair) if isinstance(t, Tensor)] for pair in pairs]
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise InputError(
                "the batches have different shapes",
                why=f"batch {index} is {shape} and the first is {shapes[0]}",
                do="leave out the last, smaller batch, or resize the images to one size",
            )
    return pairs


class Runner:
    """Runs an exported program as a graph of nodes.

    Args:
        program: the program; nothing is changed.
        output: which tensor of the result to look at: a number among its tensors, a key or attribute, a function of the
            result, or None for the first floating-point tensor.
    """

    def __init__(self, program: ExportedProgram, output: Output = None):
        self.program = program
        self._execution = Execution(program)
        self._output = output

    def run(self, batch: Batch, known: Mapping[str, Any] | None = None) -> Tensor:
        """The chosen output for a batch.

        Args:
            batch: arguments and keyword arguments.
            known: values by node name. Only what follows from them is run; a graph that writes into tensors is run
                as a whole, for they were written into already.
        """
        with torch.inference_mode():
            values = self._execution.start(batch)
            if known is not None and not self._execution.order_matters:
                values |= known
            return self._select(self._execution.evaluate("output", values))

    def cuts(self, batch: Batch, places: Sequence[str]) -> Iterator[tuple[str, Values]]:
        """For each of the named nodes, in order: the values by node name that are alive just before it runs.

        The weights are not among them: those of a rewritten graph may differ.
        """
        with torch.inference_mode():
            values, position = self._execution.start(batch), 0
            for place in sorted(places, key=self._execution.position.__getitem__):
                position = self._execution.advance(values, position, place)
                yield place, dict(values)

    def channel_axes(self) -> tuple[int, ...] | None:
        """The channel axes of the output, from the layout walk; None where it does not know."""
        if callable(self._output):
            return None
        names = {self._execution.by_name[node]: name for node, name in self._execution.weight_names.items()}
        module = self.program.graph_module
        walk = LayoutWalk(GraphView(module), names)
        results = self._user_results(list(module.graph.output_node().args[0]))
        chosen = pick(results, self._output, lambda node: node.meta.get("val") if isinstance(node, Node) else node)
        axes = walk.of(chosen)
        ranks = [rank_of(axis) for axis in axes]
        if not axes or any(rank in (0, 1) for rank in ranks[1:]):
            return None
        return tuple(axis for axis, rank in enumerate(ranks) if rank == 2)

    def _user_results(self, results: Sequence[Any]) -> Any:
        specs = self.program.graph_signature.output_specs
        flat = [result for result, spec in zip(results, specs, strict=True) if spec.kind.name == "USER_OUTPUT"]
        out_spec = self.program.call_spec.out_spec
        return pytree.tree_unflatten(flat, out_spec) if out_spec is not None else flat

    def _select(self, results: Sequence[Any]) -> Tensor:
        return pick(self._user_results(results), self._output).float()


def pick(result: Any, output: Output, value_of: Callable[[Any], Any] = lambda value: value) -> Any:
    """The leaf of a result that `output` names, as in `Runner`.

    Args:
        result: what a model yields, or nodes in its place.
        output: which tensor.
        value_of: gives the tensor that a leaf stands for.
    Raises:
        InputError: it is not there.
    """
    if callable(output):
        return output(result)
    leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(value_of(leaf), Tensor)]
    if output is None:
        for leaf in leaves:
            if value_of(leaf).is_floating_point():
                return leaf
        raise InputError("the model has no floating-point output to compare", do="name one with `output`")
    if isinstance(output, int):
        if not -len(leaves) <= output < len(leaves):
            raise InputError(f"there is no output {output}", why=f"the model yields {counted(len(leaves), 'tensor')}")
        return leaves[output]
    found = result.get(output) if isinstance(result, Mapping) else getattr(result, output, None)
    if not isinstance(value_of(found), Tensor):
        names = ", ".join(result) if isinstance(result, Mapping) else type(result).__name__
        raise InputError(f"there is no output {output!r}", why=f"the model yields {names}")
    return found
