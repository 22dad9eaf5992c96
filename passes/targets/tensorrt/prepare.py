"""The graph that is handed to Torch-TensorRT: nothing of jetvit's own is left in it, or only plugins."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

import jetvit.kernels  # noqa: F401  registers the operators
from jetvit.kernels.autocast import without_autocast
from jetvit.passes.graph.base import PassResult
from jetvit.passes.graph.regions import drop_dead_code, submodules
from jetvit.passes.graph.rewritable import ExportedGraph, RewritableGraph, on_fake_tensors
from jetvit.passes.graph.verify import Verification
from jetvit.passes.targets.tensorrt import decompositions
from jetvit.passes.targets.tensorrt.plugins import to_plugin
from jetvit.patterns.calls import traced_value
from jetvit.patterns.regions import GraphView

log = logging.getLogger(__name__)

DECOMPOSITIONS: dict[Any, Callable[..., torch.Tensor]] = {
    torch.ops.jetvit.full_attention.default: decompositions.full_attention,
    torch.ops.jetvit.window_attention.default: decompositions.window_attention,
    torch.ops.jetvit.linear_attention.default: decompositions.linear_attention,
}
_ORIGIN = ("nn_module_stack", "stack_trace", "source_fn_stack", "custom")
_REGIONS = (torch.ops.higher_order.wrap_with_autocast, torch.ops.higher_order.wrap_with_set_grad_enabled)


@dataclass(frozen=True)
class LowerOperators:
    """Replace every operator of jetvit by the ATen that TensorRT fuses, or by a plugin.

    Args:
        plugins: leave what can be a plugin to jetvit's own kernels; the rest becomes ATen, and a note says why.
    """

    plugins: bool = False
    name: ClassVar[str] = "lower-operators"

    def __call__(self, graph: RewritableGraph) -> PassResult:
        view = GraphView(graph.module, graph.ambient_autocast)
        fired, notes = 0, []
        traced: dict[Any, Graph] = {}
        for module in submodules(graph.module):
            for node in list(module.graph.nodes):
                if node.target not in DECOMPOSITIONS:
                    continue
                fired += 1
                if self.plugins:
                    why = to_plugin(node)
                    if why is None:
                        continue
                    notes.append(f"{node.name} is no plugin: {why}")
                key = _signature(node, view)
                if key not in traced:
                    traced[key] = _trace(graph, node, view)
                _inline(node, traced[key])
            drop_dead_code(module.graph)
            module.recompile()
        for note in notes:
            log.warning("%s", note)
        return PassResult(fired, tuple(notes))


def prepare(program: ExportedProgram, *, plugins: bool = False) -> ExportedProgram:
    """The program that Torch-TensorRT should compile in the place of a rewritten one.

    Args:
        program: any exported program; it is not changed, and its tensors are shared.
        plugins: keep what can be a plugin as an operator of the library `jetvit_tensorrt`, to be run by jetvit's own
            kernels. Without it only standard ATen is left.
    Returns:
        A program of the same inputs, outputs and dynamic sizes that computes the same.
    Raises:
        RewriteError: the new graph does not yield what the old one did (a defect of ours).
    """
    if any(node.target in _REGIONS for node in program.graph.nodes):
        # Under autocast the sums of the decomposed operators would be cast: the regions become casts of their own.
        program = program.run_decompositions({})
    graph = ExportedGraph(program)
    if not lower(graph, plugins):
        return program
    return graph.program()


def lower(graph: RewritableGraph, plugins: bool = False) -> int:
    """Run `LowerOperators` over a graph in place and verify it; returns how many operators were replaced."""
    verification = Verification(graph)
    result = LowerOperators(plugins)(graph)
    if result.fired:
        verification.check(LowerOperators.name)
    return result.fired


def _signature(node: Node, view: GraphView) -> Any:
    """A key of everything that the decomposition of a node depends on: the blocks of a model share one."""

    def described(argument: Any) -> Any:
        value = traced_value(argument)
        if not isinstance(value, torch.Tensor):
            return str(value), isinstance(argument, Node)
        return str(value.shape), str(value.stride()), value.dtype, value.device

    device = node.meta["val"].device.type
    return node.target, view.autocast_dtype(node, device), *map(described, node.args)


def _trace(graph: RewritableGraph, node: Node, view: GraphView) -> Graph:
    """The graph of an operator's decomposition; its placeholders are the nodes among the operator's arguments."""
    function = DECOMPOSITIONS[node.target]
    device = node.meta["val"].device
    inside = view.autocast_dtype(node, device.type) is not None

    def run(*values: Any) -> torch.Tensor:
        given = iter(values)
        arguments = [next(given) if isinstance(argument, Node) else argument for argument in node.args]
        with without_autocast(device) if inside else nullcontext():
            return function(*arguments)

    with on_fake_tensors(graph.fake_mode):
        values = [argument.meta["val"] for argument in node.args if isinstance(argument, Node)]
        traced = make_fx(run, pre_dispatch=True, tracing_mode="real", _allow_non_fake_inputs=True)(*values)
    drop_dead_code(traced.graph)
    return traced.graph


def _inline(node: Node, traced: Graph) -> None:
    """Put a traced graph in the place of a node."""
    inputs = [each for each in traced.nodes if each.op == "placeholder"]
    operands = [argument for argument in node.args if isinstance(argument, Node)]
    copies: dict[Node, Any] = dict(zip(inputs, operands, strict=True))
    with node.graph.inserting_before(node):
        result = node.graph.graph_copy(traced, copies)
    origin = {key: node.meta[key] for key in _ORIGIN if key in node.meta}
    for source, copied in copies.items():
        if source not in inputs and isinstance(copied, Node):
            copied.meta |= origin
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
