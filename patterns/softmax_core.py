"""Attention that is written out: a softmax between the product of q and k and the product with v.

Read backwards from the softmax to the scores, and forwards to the product with v. On the way scalings, upcasts, idle
dropout, masks that hide nothing and what is the same for all keys of a query are taken in; all else is an obstacle. A
softmax that is somehow between two products is always answered for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.aten_sets import CASTS, COPIES, DROPOUTS, PERMUTES, VIEWS
from jetvit.patterns.calls import argument, permutation, shape
from jetvit.patterns.core import Core, Side
from jetvit.patterns.masks import describe_mask
from jetvit.patterns.products import Product, as_product
from jetvit.patterns.regions import GraphView
from jetvit.patterns.score_path import ScorePath
from jetvit.patterns.sizes import same_last_two
from jetvit.patterns.softmax import Softmax
from jetvit.patterns.walk import LayoutWalk
from jetvit.patterns.wording import operator_name

aten = torch.ops.aten


@dataclass(frozen=True)
class _Values:
    """A product of the attention weights, its first operand, with v; `axis` is the weights' axis of keys."""

    product: Product
    axis: int


def softmax_core(softmax: Softmax, view: GraphView, walk: LayoutWalk) -> Core | None:
    """The attention around a softmax, or a near miss of one; None where there is no attention."""
    path = ScorePath(view, walk, softmax)
    weights, products, others = _down(view, softmax)
    if path.product is None:
        return _without_scores(softmax, path, products, others, walk)
    if not products:
        return _without_values(softmax, others)
    scores, values = path.product, products[0].product
    core = Core("softmax", _result(values), nodes=[scores.node])
    core.nodes += [*reversed(path.steps), *path.asides(), *softmax.nodes, *weights, values.node]
    core.obstacles += path.obstacles
    core.scale = path.scale * scores.factor
    if scores.added is not None and not walk.is_always(scores.added, 0, scores.node):
        core.refuse(describe_mask(scores.added, walk), scores.node)
    if values.factor != 1.0 or values.added is not None:
        core.refuse("something is added to the second product, or it is scaled", values.node)
    for other in others:
        core.refuse(f"the attention weights are {_use(other)}", other, crosses_edge=other.op == "output")
    if len(products) > 1:
        core.refuse("the attention weights multiply more than one tensor", products[1].product.node)
    for step in core.nodes[:-1]:
        used = [user for user in view.users(step) if user not in core.nodes]
        if used and step is not softmax.result:
            core.refuse(f"the attention scores are also {_use(used[0])}", used[0])
    for step in weights:
        if step.target in DROPOUTS and not _is_idle_dropout(step):
            reason = f"dropout on the attention weights is active (p = {step.args[1]}); call eval() before the capture"
            core.refuse(reason, step)
    _assign(core, path, products[0])
    return core


def _assign(core: Core, path: ScorePath, values: _Values) -> None:
    """Tell q, k and v apart: the softmax runs over k's tokens, and the weights multiply v."""
    scores = path.product
    assert scores is not None
    if scores.result_free[1] == path.key_axis:
        ordered = scores
    elif scores.result_free[0] == path.key_axis:
        ordered = scores.swapped()
    else:
        core.refuse("the softmax does not run over the keys", core.nodes[0])
        return
    ordered = _along_tokens(ordered, path.walk)
    core.q = Side(ordered.first, ordered.free[0], ordered.contracted[0], tuple(first for first, _ in ordered.slots))
    core.k = Side(ordered.second, ordered.free[1], ordered.contracted[1], tuple(second for _, second in ordered.slots))
    core.factors = path.factors(ordered, core)
    product = values.product
    if product.contracted[0] != values.axis:
        core.refuse("the second product does not sum over the axis that the softmax runs over", product.node)
        return
    product = _along_tokens(product, path.walk)
    core.out = _result(product)
    slots = tuple(second for (_, second), _ in _in_order_of_weights(product))
    core.v = Side(product.second, product.contracted[1], product.free[1], slots)
    core.pairs = [(each.first, a, each.second, b) for each in (ordered, product) for a, b in each.leading]


def _along_tokens(product: Product, walk: LayoutWalk) -> Product:
    """The product with tokens on the free axis of its first operand, where that has axes of heads alone as well."""
    axes = walk.of(walk.view.resolve(product.first))
    tokens = [axis for axis in product.lone if axis < len(axes) and any(atom.kind != "feature" for atom in axes[axis])]
    return product.with_free(tokens[0]) if tokens else product


def _result(values: Product) -> Side:
    """The result of the product with v; its leading axes in the order of those of the attention weights."""
    return Side(values.node, *values.result_free, tuple(place for _, place in _in_order_of_weights(values)))


def _in_order_of_weights(values: Product) -> list[tuple[tuple[int | None, int | None], int]]:
    """The slots of the product with v and their places in its result."""
    slots = zip(values.slots, values.result_slots, strict=True)
    return sorted(slots, key=lambda slot: len(shape(values.first)) if slot[0][0] is None else slot[0][0])


def _without_scores(
    softmax: Softmax, path: ScorePath, products: list[_Values], others: list[Node], walk: LayoutWalk
) -> Core | None:
    """A softmax over something else than q·kᵀ: a near miss where it weighs tokens, else no attention."""
    axes = walk.of(softmax.result)
    if not axes or "input" not in walk.sources.get(softmax.result, ()):
        return None
    axis, weighs = axes[softmax.axis], []
    if not all(atom.kind == "feature" for atom in axis):
        weighs = [each.product.node for each in products if each.product.contracted[0] == each.axis]
    if not weighs and ax.is_of_a_map(axis):
        weighs = [each for each in others if _is_summed(each, softmax, walk)]
    if not weighs:
        return None
    core = Core("softmax", Side(weighs[0], 0, 0), nodes=[softmax.result])
    reason = (
        "no product of q and k is what the softmax runs over: this attention is linear already, or its weights are "
        "predicted"
    )
    is_input = path.last.op == "placeholder"
    if is_input:
        reason = (
            f"the softmax runs over an input of this graph, {path.last.name}: how its numbers are made is not known"
        )
    core.refuse(reason, softmax.result, is_input)
    return core


def _is_summed(node: Node, softmax: Softmax, walk: LayoutWalk) -> bool:
    """True where the weights scale a tensor of the image and their axis is summed: a product that is written out."""
    rank = len(shape(softmax.result))
    if node.target is not aten.mul.Tensor or len(shape(node)) != rank:
        return False
    scaled = [each for each in node.all_input_nodes if walk.view.resolve(each) is not softmax.result]
    if not scaled or "input" not in walk.sources.get(scaled[0], ()):
        return False
    sums = [user for user in walk.view.users(node) if user.target is aten.sum.dim_IntList]
    return any([axis % rank for axis in argument(user, 1, "dim") or ()] == [softmax.axis] for user in sums)


def _without_values(softmax: Softmax, others: list[Node]) -> Core | None:
    """A softmax over q·kᵀ whose result no product reads directly: a near miss if it has heads, else no attention."""
    if len(shape(softmax.result)) < 3 or not others:
        return None
    core = Core("softmax", Side(softmax.result, 0, 0), nodes=[softmax.result])
    first = others[0]
    core.refuse(f"the attention weights are {_use(first)}, not by a product", first, crosses_edge=first.op == "output")
    return core


def _use(user: Node) -> str:
    return "returned" if user.op == "output" else f"used by {user.name} ({operator_name(user.target)})"


def _down(view: GraphView, softmax: Softmax) -> tuple[list[Node], list[_Values], list[Node]]:
    """From a softmax to the product with v: the steps between, the products, and any other user of the weights."""
    steps: list[Node] = []
    products: list[_Values] = []
    others: list[Node] = []
    frontier = [(softmax.result, softmax.axis)]
    while frontier:
        node, axis = frontier.pop()
        for user in view.users(node):
            product = as_product(user)
            if product is not None and product.added is not None and view.resolve(product.added) is node:
                product = None
            if product is not None:
                is_first = view.resolve(product.first) is node
                products.append(_Values(product if is_first else product.swapped(), axis))
            elif (following := _key_axis(node, axis, user)) is not None:
                steps.append(user)
                frontier.append((user, following))
            else:
                others.append(user)
    return steps, products, others


def _key_axis(before: Node, axis: int, after: Node) -> int | None:
    """The axis of keys after a step that keeps the weights; None for any other step."""
    sizes, rank = shape(after), len(shape(before))
    if after.target in PERMUTES:
        order = permutation(after)
        return order.index(axis) if order[:-2] == list(range(rank - 2)) else None
    if after.target in CASTS | COPIES | VIEWS | DROPOUTS:
        return len(sizes) - (rank - axis) if rank - axis <= 2 and same_last_two(shape(before), sizes) else None
    return None


def _is_idle_dropout(node: Node) -> bool:
    return argument(node, 1, "p", 0.5) == 0 or not argument(node, 2, "train", False)
