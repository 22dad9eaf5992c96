"""Count the `Operation`s that a captured graph runs, before and after the rewrites."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from jetvit.cost_model.measuring.operation import ELEMENT_BYTES, Operation
from jetvit.kernels.arguments import ARGUMENTS
from jetvit.kernels.checks import is_absent
from jetvit.kernels.linear_attention.arguments import LinearAttentionArgs
from jetvit.kernels.tuning import hint
from jetvit.kernels.window_attention.arguments import WindowAttentionArgs
from jetvit.patterns.aten_sets import SDPA
from jetvit.patterns.operator_args import arguments_of, sdpa_arguments
from jetvit.patterns.regions import GraphView
from jetvit.torch_private import OpOverload

aten = torch.ops.aten

# What computes nothing on the device.
_FREE = {aten.new_empty.default, aten.empty.memory_format, aten.dropout.default}


@dataclass(frozen=True)
class GraphOperations:
    """The work of one graph.

    counted: how often each operation runs. others: the calls that no `Operation` stands for, by operator, views left
    out: the patch embedding, concatenations, and whatever else a model does.
    """

    counted: Counter[Operation]
    others: Counter[str]

    @property
    def launches(self) -> int:
        """The number of operators that the graph runs on the device; a compiler may fuse some of them."""
        return self.counted.total() + self.others.total()


def graph_operations(module: GraphModule, ambient_autocast: Mapping[str, torch.dtype] | None = None) -> GraphOperations:
    """Read the operations off a graph with `meta["val"]`s; sizes that it leaves open are those of the example."""
    counted: Counter[Operation] = Counter()
    others: Counter[str] = Counter()
    for node in GraphView(module, ambient_autocast).nodes:
        if node.op != "call_function" or not isinstance(node.target, OpOverload) or node.target in _FREE:
            continue
        if not isinstance(node.meta.get("val"), torch.Tensor) or node.target.is_view:
            continue
        operation = _operation(node)
        if operation is None:
            others[str(node.target)] += 1
        else:
            counted[operation] += 1
    return GraphOperations(counted, others)


def _operation(node: Node) -> Operation | None:
    """The operation of a call, None if there is none for it."""
    reader = _READERS.get(node.target)
    dtype = str(node.meta["val"].dtype).removeprefix("torch.")
    if reader is None or dtype not in ELEMENT_BYTES:
        return None
    fields = reader(node)
    if fields is None:
        return None
    return Operation(dtype=dtype, **fields)


def _sizes(node: Node) -> list[int] | None:
    """The sizes of a tensor; None if they depend on data."""
    sizes = [hint(size) for size in node.meta["val"].shape]
    return None if None in sizes or 0 in sizes else sizes


def _row_wise(op: str) -> Callable[[Node], dict[str, Any] | None]:
    def read(node: Node) -> dict[str, Any] | None:
        sizes = _sizes(node.args[0])
        if not sizes:
            return None
        return {"op": op, "batch": 1, "grid_h": 1, "grid_w": math.prod(sizes[:-1]), "inputs": sizes[-1]}

    return read


def _add(node: Node) -> dict[str, Any] | None:
    """A residual: two tensors of one shape."""
    first, second = (node.args[0], node.args[1])
    if not isinstance(second, Node) or first.meta["val"].shape != second.meta["val"].shape:
        return None
    return _row_wise("add")(node)


def _gemm(node: Node) -> dict[str, Any] | None:
    fields, weight = _row_wise("gemm")(node), _sizes(node.args[1])
    if fields is None or weight is None:
        return None
    return fields | {"outputs": weight[0]}


def _sdpa(node: Node) -> dict[str, Any] | None:
    arguments = sdpa_arguments(node)
    sizes = _sizes(arguments.query)
    if sizes is None or len(sizes) != 4 or sizes != _sizes(arguments.key) or arguments.attn_mask is not None:
        return None
    batch, heads, tokens, head_dim = sizes
    return {"op": "full", "batch": batch, "grid_h": 1, "grid_w": tokens, "heads": heads, "head_dim": head_dim}


def _operator(node: Node) -> dict[str, Any] | None:
    """One of jetvit's operators."""
    arguments = arguments_of(node)
    sizes, grid_h, grid_w = _sizes(arguments.q), _int(arguments.grid_h), _int(arguments.grid_w)
    if sizes is None or grid_h is None or grid_w is None:
        return None
    batch, tokens, heads, head_dim = sizes
    fields: dict[str, Any] = {"op": "full", "batch": batch, "heads": heads, "head_dim": head_dim}
    fields |= {"grid_h": grid_h, "grid_w": grid_w, "extra": tokens - grid_h * grid_w}
    fields["rope"] = not is_absent(arguments.rope_y.meta["val"])
    if isinstance(arguments, WindowAttentionArgs):
        fields |= {"op": "window", "window_h": _int(arguments.window_h), "window_w": _int(arguments.window_w)}
    elif isinstance(arguments, LinearAttentionArgs):
        fields |= {"op": "linear", "conv_size": arguments.conv_size, "feature_map": arguments.feature_map}
    return fields


def _int(value: object) -> int | None:
    return hint(value.meta["val"]) if isinstance(value, Node) else hint(value)


_READERS: dict[object, Callable[[Node], dict[str, Any] | None]] = {
    aten.linear.default: _gemm,
    aten.layer_norm.default: _row_wise("layer_norm"),
    aten.gelu.default: _row_wise("gelu"),
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add,
    SDPA: _sdpa,
    **dict.fromkeys(ARGUMENTS, _operator),
}
