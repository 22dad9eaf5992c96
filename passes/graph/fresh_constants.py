"""Constants of the model's code, `torch.tensor(0.0)` say, in the form that all passes can read. Done at capture.

torch captures such a constant as a copy of a hidden tensor, followed on some versions by `detach_`. What reads the
graph sees neither a value, nor, past a write, what it is a copy of: a mask that hides nothing passes for a learned one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import GraphModule, Node

from jetvit.patterns.regions import REGION_OPERANDS
from jetvit.torch_private import FakeTensor

aten = torch.ops.aten


def spell_out_constants(module: GraphModule, constants: Mapping[Node, torch.Tensor]) -> None:
    """Write fresh copies of a constant as `full`, where all its entries are the same number; take out `detach_`.

    Args:
        module: the graph, changed in place, and its autocast and no_grad regions.
        constants: node → value, for tensors that nobody can give other values.
    """
    known = dict(constants)
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in REGION_OPERANDS:
            first = REGION_OPERANDS[node.target]
            region = module.get_submodule(node.args[first - 1].target)
            inner = [each for each in region.graph.nodes if each.op == "placeholder"]
            operands = zip(inner, node.args[first:], strict=True)
            spell_out_constants(region, {each: known[operand] for each, operand in operands if operand in known})
        elif node.target is aten.detach_.default:  # at inference it does nothing
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target is aten.lift_fresh_copy.default and (number := _number(known.get(node.args[0]))) is not None:
            value = node.meta["val"]
            node.target = aten.full.default
            node.args = (list(value.shape), number)
            node.kwargs = {"dtype": value.dtype, "device": value.device, "pin_memory": False}


def _number(tensor: torch.Tensor | None) -> bool | int | float | None:
    """The number that every entry of a tensor is."""
    if tensor is None or isinstance(tensor, FakeTensor) or tensor.numel() == 0 or tensor.is_complex():
        return None
    first = tensor.flatten()[0]
    return first.item() if bool((tensor == first).all()) else None
