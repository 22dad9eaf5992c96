"""Exact: every full attention becomes one plain `scaled_dot_product_attention`, or one operator.

Covered: softmax between two products in any form that the patterns know, and SDPA with a mask that hides nothing. The
backends of SDPA never form the N × N scores, so this alone makes models with hand-written attention faster. The
operator `jetvit::full_attention` also takes the rotary embedding, where that is provably the same. Held to the dtype's
own tolerance: only the order of roundings differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from jetvit.kernels.full_attention.arguments import FullAttentionArgs
from jetvit.passes.graph.base import PassResult
from jetvit.passes.graph.layouts import views_to_reshapes
from jetvit.passes.graph.operands import Operands
from jetvit.passes.graph.rewritable import RewritableGraph
from jetvit.passes.rewrites.rope import OperatorOperands
from jetvit.patterns.aten_sets import SDPA
from jetvit.patterns.calls import shape
from jetvit.patterns.operator_args import sdpa_arguments
from jetvit.patterns.regions import GraphView
from jetvit.patterns.site import AttentionSite


@dataclass(frozen=True)
class FuseAttention:
    """Turn every found site that is not one plain SDPA node into one, whichever strides its backend gives.

    Args:
        operator: turn every site into `jetvit::full_attention` instead; None does so where it runs on a CUDA device.
    """

    operator: bool | None = None
    name: ClassVar[str] = "fuse-attention"

    def __call__(self, graph: RewritableGraph) -> PassResult:
        fired = 0
        for site in graph.sites():
            if site.form == "operator":
                continue
            if self._is_for_operator(site):
                _to_operator(graph, site)
                fired += 1
            elif not _is_plain(site):
                _to_sdpa(graph, site)
                fired += 1
            elif views_to_reshapes(site.out.node):
                fired += 1
        return PassResult(fired)

    def _is_for_operator(self, site: AttentionSite) -> bool:
        if self.operator is not None:
            return self.operator
        # Grouped queries stay with SDPA: the operator would need the heads of k and v repeated.
        return site.out.node.meta["val"].is_cuda and site.kv_heads is None


def _is_plain(site: AttentionSite) -> bool:
    """True for an SDPA node that exporters and fast backends know too: no mask, no broadcast heads, no fifth axis."""
    node = site.out.node
    if node.target is not SDPA:
        return False
    arguments = sdpa_arguments(node)
    broadcast = site.kv_heads is not None and not arguments.enable_gqa
    return arguments.attn_mask is None and not broadcast and len(shape(node)) <= 4


def _to_sdpa(graph: RewritableGraph, site: AttentionSite) -> None:
    operands = Operands(graph, site, GraphView(graph.module, graph.ambient_autocast), "bhtd")
    result = operands.call(SDPA, operands.q, operands.k, operands.v, None, 0.0, False, scale=site.scale)
    operands.replace(result)


def _to_operator(graph: RewritableGraph, site: AttentionSite) -> None:
    operands = OperatorOperands(graph, site, GraphView(graph.module, graph.ambient_autocast))
    target = torch.ops.jetvit.full_attention.default
    operands.replace(operands.call(target, *FullAttentionArgs(**operands.common, scale=site.scale)))
