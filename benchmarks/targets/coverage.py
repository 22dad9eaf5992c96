"""Does Torch-TensorRT convert every operator of a program? Asked of its source, without TensorRT and without a GPU.

What `torch_tensorrt.dynamo.compile` does to a program before it converts anything is done here with the same groups of
decompositions, and its lowering passes are followed where they take operators away: constants are folded, assertions,
detachments and dead code are gone. What is left must have a converter that takes it. An operator that is listed would
run in PyTorch, in the middle of the engine: slower, not wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from benchmarks.targets.converters import Converter, Release, name_of, op_of, release
from benchmarks.targets.validators import MAX_RANK, VALIDATORS, has_dynamic_sizes
from jetvit.passes.targets.tensorrt.plugins import PLUGINS
from jetvit.torch_private import (
    OpOverloadPacket,
    composite_operators,
    decomposition_of_composite,
    get_decompositions,
    pytree,
)

aten = torch.ops.aten

# What the release's own decompositions yield, by operator: those that vision models come by.
_OWN: dict[str, Callable[..., Any]] = {
    "aten.rsqrt": lambda x: torch.reciprocal(torch.sqrt(x)),
    "aten.reciprocal.default": lambda x: torch.div(1, x),
    "aten.silu.default": lambda x: x * torch.sigmoid(x),
    "aten.view.default": lambda x, size: aten._reshape_copy.default(x, size),
    "aten._unsafe_view": lambda x, size: torch.reshape(x, size),
    "aten.alias": lambda x: x,
    "aten.lift_fresh_copy": lambda x: x,
    "aten._log_softmax": lambda x, dim, half_to_float: torch.log(torch.softmax(x, dim)),
    "aten.full_like": lambda x, value, *, dtype=None, device=None, **_: torch.full(
        x.shape, value, dtype=dtype or x.dtype, device=device or x.device
    ),
}


class Uncovered(NamedTuple):
    """An operator that would not run in TensorRT: its name, the node's name, and why."""

    op: str
    node: str
    why: str


def decomposition_table(known: Release | None = None) -> dict[Any, Callable[..., Any]]:
    """The decompositions that `torch_tensorrt.dynamo.compile` runs by default, rebuilt for this torch.

    torch's own for the enabled group, all composite operators but the disabled group and attention, and the release's
    own functions, as far as they are known here.
    """
    known = known or release()
    kept = {op_of(name) for name in (*known.disabled, *known.attention)}
    composite = {op: decomposition_of_composite(op) for op in composite_operators() if op not in kept}
    enabled = get_decompositions([op for name in known.enabled if (op := op_of(name)) is not None])
    own = {op: function for name, function in _OWN.items() if name in known.own for op in _overloads(op_of(name))}
    return {**enabled, **composite, **own}


def _overloads(op: Any) -> list[Any]:
    return [getattr(op, name) for name in op.overloads()] if isinstance(op, OpOverloadPacket) else [op]


def decomposed(program: ExportedProgram, known: Release | None = None) -> ExportedProgram:
    """The program as Torch-TensorRT would see it before it converts it."""
    return program.run_decompositions(decomposition_table(known))


def uncovered(program: ExportedProgram, known: Release | None = None) -> list[Uncovered]:
    """The operators of a prepared program that would not run in TensorRT; empty is the proof that all would.

    Args:
        program: what `prepare` gave, decomposed here first.
        known: the release of Torch-TensorRT; the one of `converters.json`.
    """
    known = known or release()
    program = decomposed(program, known)
    lowered = _Lowered(program, {op_of(name) for name in known.removed})
    found = []
    for node in program.graph.nodes:
        if node.op == "call_function" and node not in lowered.gone:
            why = _refusal(node, known, lowered)
            if why is not None:
                found.append(Uncovered(name_of(node.target), node.name, why))
    return found


class _Lowered:
    """The nodes that the lowering passes remove.

    constants: their values are known when the engine is built, so that they are folded.
    gone: constants, what is erased, and what nobody reads then.
    """

    def __init__(self, program: ExportedProgram, removed: set[Any]):
        lifted = {
            spec.arg.name
            for spec in program.graph_signature.input_specs
            if spec.kind is not InputKind.USER_INPUT and hasattr(spec.arg, "name")
        }
        self.constants: set[Node] = set()
        self.gone: set[Node] = set()
        nodes = list(program.graph.nodes)
        for node in nodes:
            if node.op == "placeholder" and node.name in lifted:
                self.constants.add(node)
            elif node.op == "call_function" and self._folds(node):
                self.constants.add(node)
                self.gone.add(node)
        for node in reversed(nodes):
            unread = all(user in self.gone for user in node.users) and not node.is_impure()
            if node.op == "call_function" and (node.target in removed or unread or _is_idle_minimum(node)):
                self.gone.add(node)

    def _folds(self, node: Node) -> bool:
        operands = pytree.arg_tree_leaves(*node.args, **node.kwargs)
        nodes = [each for each in operands if isinstance(each, Node)]
        known = isinstance(node.meta.get("val"), Tensor) and not node.is_impure()
        return known and all(each in self.constants for each in nodes)


def _is_idle_minimum(node: Node) -> bool:
    """`min(size, largest int)`, which export writes for an open size and a pass takes out."""
    return node.target is torch.sym_min and sys.maxsize in node.args


def _refusal(node: Node, known: Release, lowered: _Lowered) -> str | None:
    values = [each for each in pytree.tree_leaves(node.meta.get("val")) if isinstance(each, Tensor)]
    if any(value.is_complex() for value in values):
        return "its values are complex"
    if any(value.dim() > MAX_RANK for value in values):
        return f"it has more than {MAX_RANK} axes"
    if node.target in PLUGINS:
        return None
    op = name_of(node.target)
    if op == "operator.getitem":
        return None  # one result of an operator that is asked itself
    candidates = known.converters.get(op, ())
    if not candidates:
        by = next((by for name, by in known.own.items() if name in (op, op.rpartition(".")[0])), None)
        return "there is no converter" if by is None else f"{by} of Torch-TensorRT takes it apart, unknown here"
    reasons = [_of(converter, node) for converter in candidates]
    return None if None in reasons else "; ".join(dict.fromkeys(filter(None, reasons)))


def _of(converter: Converter, node: Node) -> str | None:
    """Why a converter does not take a node."""
    if converter.requires is not None:
        return f"its converter needs {converter.requires}"
    if not converter.dynamic and has_dynamic_sizes(node):
        return "its converter takes fixed sizes alone"
    if converter.validator is None:
        return None
    validator = VALIDATORS.get(converter.validator)
    if validator is None:
        return f"it has a condition that is not known here: {converter.validator}"
    return validator(node)
