"""Reading the calls of attention operators in a graph: jetvit's own three and SDPA."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.fx import Node

from jetvit.kernels.arguments import ARGUMENTS, OperatorArgs


class SdpaArgs(NamedTuple):
    """The arguments of `aten.scaled_dot_product_attention`, in the order and with the defaults of its schema."""

    query: Any
    key: Any
    value: Any
    attn_mask: Any = None
    dropout_p: Any = 0.0
    is_causal: Any = False
    scale: Any = None
    enable_gqa: Any = False


def arguments_of(node: Node) -> OperatorArgs:
    """Name the arguments of a call of one of jetvit's operators."""
    return ARGUMENTS[node.target](*node.args, **node.kwargs)


def sdpa_arguments(node: Node) -> SdpaArgs:
    """Name the arguments of a call of SDPA."""
    return SdpaArgs(*node.args, **node.kwargs)


def qkv_of(node: Node) -> tuple[Node, Node, Node]:
    """Return the queries, keys and values of a call of SDPA or of one of jetvit's operators."""
    if node.target in ARGUMENTS:
        arguments = arguments_of(node)
        return arguments.q, arguments.k, arguments.v
    query, key, value, *_ = sdpa_arguments(node)
    return query, key, value
