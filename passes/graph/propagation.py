"""The values of a graph's nodes, as fake tensors: run once in whole, and after a change only what depends on it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch.fx import GraphModule, Node

from jetvit.passes.graph.region_interpreter import RegionInterpreter, ambient_autocast
from jetvit.passes.graph.regions import submodules
from jetvit.passes.graph.rewritable import RewritableGraph, on_fake_tensors
from jetvit.patterns.sizes import same, same_sizes
from jetvit.torch_private import OpOverload, enter_autocast, exit_autocast, is_vmap, pytree

_READS_A_VALUE = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


class _Known(NamedTuple):
    """A node's value, and the call that it is the value of."""

    call: Any
    value: Any


class Propagation:
    """Runs a graph on fake tensors, as often as it is changed, and notes every value in the nodes.

    A node is run again if its call or a value that it reads is another than at the last run.
    """

    def __init__(self, graph: RewritableGraph):
        self._graph = graph
        self._known: dict[Node, _Known] = {}

    def run(self) -> list[Any]:
        """Bring the values of all nodes up to date; returns those of the results.

        Raises:
            Exception: what an operator raises on its operands.
        """
        if self._known and all(map(_keeps_values, submodules(self._graph.module))):
            with suppress(Exception):  # it is run in whole then, so that no error is one of the shortcut
                return self._run()
        self._known = {}
        return self._run()

    def _run(self) -> list[Any]:
        nodes = self._graph.module.graph.nodes
        inputs = [node.meta["val"] for node in nodes if node.op == "placeholder"]
        interpreter = _Interpreter(self._graph.module)
        interpreter.known = self._known
        interpreter.fakes = {
            node.target: node.meta["val"] for node in nodes if node.op == "get_attr" and "val" in node.meta
        }
        with on_fake_tensors(self._graph.fake_mode):
            results = pytree.tree_leaves(interpreter.run(*inputs))
        self._known = interpreter.noted
        return results


class _Interpreter(RegionInterpreter):
    """Runs a graph on fake tensors.

    Attributes:
        known: the values of the last run.
        noted: those of this one.
        fakes: the values of attributes.
    """

    def __init__(self, module: GraphModule):
        super().__init__(module)
        self.known: dict[Node, _Known] = {}
        self.noted: dict[Node, _Known] = {}
        self.fakes: dict[Any, Any] = {}

    def run_node(self, n: Node) -> Any:
        if "val" in n.meta and (n.target in _READS_A_VALUE or n.meta.get("unbacked_bindings")):
            self.noted[n] = _Known(None, n.meta["val"])
            return n.meta["val"]  # with the symbol that capture gave it: what depends on values cannot be run again
        call, known = _call(n), self.known.get(n)
        stands = n.op == "call_function" and n.target not in (enter_autocast, exit_autocast)  # those do, not compute
        if known is not None and stands and known.call == call and self._reads_the_same(n):
            result = known.value
        else:
            result = super().run_node(n)
            if known is not None and _indistinguishable(known.value, result):
                result = known.value  # what reads it need not run again
        self.noted[n] = _Known(call, result)
        if isinstance(result, torch.Tensor | torch.SymInt | list | tuple) and n.op != "output":
            n.meta["val"] = result
        return result

    def _reads_the_same(self, node: Node) -> bool:
        """True if all values that a node reads are those of the last run; not of regions, whose inside may differ."""
        for used in node.all_input_nodes:
            if used not in self.known or used not in self.noted or isinstance(self.noted[used].value, GraphModule):
                return False
            if self.noted[used].value is not self.known[used].value:
                return False
        return True

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self.fakes.get(target, value)


def _call(node: Node) -> Any:
    """The target of a node, its nodes and constants, and its autocast."""
    return node.target, _typed(node.args), _typed(node.kwargs), ambient_autocast()


def _typed(value: Any) -> Any:
    """A copy to compare by: 1, 1.0 and True differ."""
    if isinstance(value, dict):
        return {key: _typed(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_typed(each) for each in value]
    return value if isinstance(value, Node) else (type(value), value)


def _keeps_values(module: GraphModule) -> bool:
    """True if a value of the last run can be read in this one: no operator has changed its shape in place since, and
    none belongs to a level of vmap, which is gone."""
    return not any(
        is_vmap(node.target) or (isinstance(node.target, OpOverload) and torch.Tag.inplace_view in node.target.tags)
        for node in module.graph.nodes
    )


def _indistinguishable(before: Any, after: Any) -> bool:
    """True if two values are of one kind in all that an operator can see of them without their numbers."""
    if type(before) is not type(after):
        return False
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(_indistinguishable, before, after))
    if isinstance(before, torch.SymInt):
        return same(before, after)
    if not isinstance(before, torch.Tensor):
        return before is after
    if any(getattr(each, "constant", None) is not None for each in (before, after)):
        return before is after  # a fake tensor that knows its numbers, and operators read them
    return (
        same_type(before, after)
        and (before.layout, before.requires_grad) == (after.layout, after.requires_grad)
        and same_sizes(before.stride(), after.stride())
        and same(before.storage_offset(), after.storage_offset())
    )


def same_type(before: torch.Tensor, after: torch.Tensor) -> bool:
    """True if two tensors have one dtype, device and, provably, shape."""
    return (before.dtype, before.device) == (after.dtype, after.device) and same_sizes(before.shape, after.shape)
