"""Near misses: tokens that are weighed by their scores, or by a function of them that is no softmax."""

from __future__ import annotations

import torch
from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.calls import shape
from jetvit.patterns.core import Core, Side
from jetvit.patterns.products import Product, as_product
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import same, same_sizes
from jetvit.patterns.softmax import ENDS, SEARCH, as_softmax
from jetvit.patterns.walk import LayoutWalk
from jetvit.patterns.wording import operator_name
from jetvit.torch_private import OpOverload


def core_without_softmax(node: Node, view: GraphView, walk: LayoutWalk) -> Core | None:
    """The near miss whose result a product is: its weights are made from q·kᵀ of image tokens without a softmax."""
    values = as_product(node)
    if values is None:
        return None
    for product in (values, values.swapped()):
        last = view.resolve(product.first)
        steps, scores = _back(last, view)
        if scores is None or not _are_tokens(scores, walk):
            continue
        core = Core("softmax", Side(node, *product.result_free), nodes=[scores.node, node])
        named = f": {operator_name(steps[0].target)} takes its place" if steps else ""
        core.refuse(f"the attention weights are no softmax of the scores{named}", steps[0] if steps else node)
        return core
    return None


def _back(node: Node, view: GraphView) -> tuple[list[Node], Product | None]:
    """The product that weights are made of, elementwise, and the steps between; a scaling by a number is no step."""
    steps: list[Node] = []
    for _ in range(SEARCH):
        if (product := as_product(node)) is not None:
            return steps, product
        pointwise = isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags
        if not pointwise or as_softmax(node, view) is not None:
            break
        tensors = [view.resolve(each) for each in node.all_input_nodes]
        alike = [each for each in tensors if same_sizes(shape(each), shape(node))]
        if not alike:
            break
        if len(tensors) > 1 or len(node.args) == 1:
            steps.append(node)
        node = alike[0]
    return [], None


def _are_tokens(scores: Product, walk: LayoutWalk) -> bool:
    """True for a square of tokens: the places of one map, or one map with tokens beside it, along both axes.

    Not of attention weights by a tensor, which is an attention itself.
    """
    if any(_comes_from_softmax(each, walk.view) for each in (scores.first, scores.second)):
        return False
    axes = walk.of(scores.node)
    if len(axes) != len(shape(scores.node)):
        return False
    rows, columns = (axes[axis] for axis in scores.result_free)
    return same(ax.axis_size(rows), ax.axis_size(columns)) and ax.is_of_a_map(rows) and ax.is_of_a_map(columns)


def _comes_from_softmax(node: Node, view: GraphView) -> bool:
    """True for attention weights, and for products of them; not for what a projection makes of an attention."""
    for _ in range(SEARCH):
        node = view.resolve(node)
        if as_softmax(node, view) is not None:
            return True
        product = as_product(node)
        first = product.first if product is not None else node.args[0] if node.args else None
        if not isinstance(first, Node) or node.target in ENDS | {torch.ops.aten.linear.default}:
            return False
        node = first
    return False
