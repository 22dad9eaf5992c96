"""The few forms of attention: one SDPA node, a softmax between two products, or the operator that FuseAttention makes.

`find_cores` reads them off the graph with their scale, whatever stands between the two products: scalings on q, on k,
on both or on the product; upcasts; dropout that does nothing; views of the leading axes. Anything else that stands
there is kept as an `Obstacle`, so that a near miss is an answer with a reason and not silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.fx import Node

from jetvit.kernels.full_attention.arguments import FullAttentionArgs
from jetvit.patterns.aten_sets import CASTS, PERMUTES, SCALINGS, SDPA
from jetvit.patterns.calls import permutation, shape
from jetvit.patterns.core import Core, Side
from jetvit.patterns.masks import describe_mask, is_neutral_mask
from jetvit.patterns.operator_args import arguments_of, qkv_of, sdpa_arguments
from jetvit.patterns.other_weights import core_without_softmax
from jetvit.patterns.products import aligned_right
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import same
from jetvit.patterns.softmax import as_softmax
from jetvit.patterns.softmax_core import softmax_core
from jetvit.patterns.walk import LayoutWalk
from jetvit.patterns.wording import operator_name

aten = torch.ops.aten

OPERATOR = torch.ops.jetvit.full_attention.default
FUSED = (aten._transformer_encoder_layer_fwd.default, aten._native_multi_head_attention.default)


def find_cores(view: GraphView, walk: LayoutWalk) -> Iterator[Core]:
    """Every attention and near miss of a graph, in the order of execution of their results."""
    for node in view.nodes:
        core = None
        if node.target is SDPA:
            core = _from_sdpa(node, walk)
        elif node.target is OPERATOR:
            core = operator_core(node)
            arguments = arguments_of(node)
            assert isinstance(arguments, FullAttentionArgs)
            core.scale = float(arguments.scale)
        elif node.target in FUSED:
            core = Core("fused", Side(node, 0, 0), nodes=[node])
            core.refuse(
                f"{operator_name(node.target)} runs the attention inside a larger operator; call "
                "torch.backends.mha.set_fastpath_enabled(False) before the capture",
                node,
            )
        elif (softmax := as_softmax(node, view)) is not None:
            core = softmax_core(softmax, view, walk)
        else:
            core = core_without_softmax(node, view, walk)
        if core is not None:
            if not core.obstacles:
                _peel(core, view)
            yield core


def _peel(core: Core, view: GraphView) -> None:
    """Take numbers that scale q or k into the scale, and transposes and needless upcasts into the axes."""
    assert core.q is not None
    assert core.k is not None
    assert core.v is not None
    core.v = _peel_side(core, core.v, view, None)[0]
    narrow = core.v.node.meta["val"].dtype
    core.q, first = _peel_side(core, core.q, view, narrow)
    core.k, second = _peel_side(core, core.k, view, narrow)
    core.scale *= first * second


def _peel_side(core: Core, side: Side, view: GraphView, narrow: torch.dtype | None) -> tuple[Side, float]:
    """One operand before its transposes; q and k, which have a `narrow` dtype, also before scalings and upcasts."""
    factor = 1.0
    while True:
        node = view.resolve(side.node)
        if not view.visible(node, core.out.node.graph):
            return side, factor  # made inside a region: the attention reads what the region gives out
        if node.op != "call_function":
            return replace(side, node=node), factor
        before = node.args[0] if node.args else node
        if node.target in PERMUTES:
            side = side.before_permutation(before, permutation(node))
        elif narrow and node.target in SCALINGS and isinstance(node.args[1], int | float):
            factor = factor / node.args[1] if "div" in str(node.target) else factor * node.args[1]
            side = replace(side, node=before)
        elif narrow and node.target in CASTS and before.meta["val"].dtype == narrow:
            side = replace(side, node=before)
        else:
            return replace(side, node=node), factor
        core.peeled.append(node)


def operator_core(node: Node) -> Core:
    """The core of an operator of jetvit, which takes and gives [batch, token, head, dim]."""
    q, k, v = (Side(operand, 1, 3) for operand in qkv_of(node))
    absent = [each for each in node.all_input_nodes if each.target is aten.new_empty.default]  # reads no value of q
    core = Core("operator", Side(node, 1, 3), q, k, v, nodes=[node, *absent])
    core.pairs = [(q.node, dim, other.node, dim) for other in (k, v) for dim in (0, 2)]
    return core


def _from_sdpa(node: Node, walk: LayoutWalk) -> Core:
    arguments = sdpa_arguments(node)
    query, key, value = arguments.query, arguments.key, arguments.value
    rank, head_dim = len(shape(node)), shape(query)[-1]
    scale = arguments.scale
    sides = []
    for each in (query, key, value):
        own = len(shape(each))
        sides.append(Side(each, own - 2, own - 1, tuple(aligned_right(own - 2, rank - 2))))
    q, k, v = sides
    core = Core("sdpa", Side(node, rank - 2, rank - 1), q, k, v, nodes=[node])
    core.grouped = bool(arguments.enable_gqa) and not same(shape(query)[-3], shape(key)[-3])
    for side in (k, v):
        pairs = list(zip(q.leading, side.leading, strict=True))[: rank - 2 - core.grouped]
        core.pairs += [(query, a, side.node, b) for a, b in pairs if a is not None and b is not None]
    core.scale = float(scale) if isinstance(scale, int | float) else 1.0 / math.sqrt(int(head_dim))
    if isinstance(scale, Node):
        core.refuse("the softmax scale is not a constant", node)
    if arguments.is_causal:
        core.refuse("causal attention", node)
    if dropout := arguments.dropout_p:
        core.refuse(f"dropout on the attention weights is active (p = {dropout}); call eval() before the capture", node)
    mask = arguments.attn_mask
    if mask is not None and not is_neutral_mask(mask, walk, node):
        core.refuse(describe_mask(mask, walk), mask)
    return core
