"""Attention that is written out: a softmax between the product of q and k and the product with v.

Read backwards from the softmax to the scores, and forwards to the product with v. On the way scalings, upcasts, idle
dropout, masks that hide nothing and what is the same for all keys of a query are taken in; all else is an obstacle. A
softmax that is somehow between two products is always answered for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.calls import argument, shape, turned
from jetvit.patterns.core import Core, Factor, Obstacle, Side
from jetvit.patterns.masks import describe_mask
from jetvit.patterns.operators import CASTS, COPIES, MASKINGS, SCALINGS, SOFTMAX, SUMS, TURNS, VIEWS
from jetvit.patterns.products import Product, as_product
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import Size, is_one, same, same_sizes
from jetvit.patterns.walk import LayoutWalk
from jetvit.patterns.wording import operator_name

aten = torch.ops.aten
_DROPOUTS = (aten.dropout.default, aten.dropout_.default)
ENDS = (aten.layer_norm.default, aten.rms_norm.default, aten.group_norm.default)
"""What is before one of these belongs to another part of the model."""
SEARCH = 12  # how many steps back from a softmax a product of q and k may stand for a near miss to be told


@dataclass(frozen=True)
class Softmax:
    """A softmax: the scores that it reads, the axis that it runs over, its result, and the nodes that compute it."""

    scores: Node
    axis: int
    result: Node
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class _Values:
    """A product of the attention weights, its first operand, with v; `axis` is the weights' axis of keys."""

    product: Product
    axis: int


def as_softmax(node: Node, view: GraphView) -> Softmax | None:
    """The softmax whose result a node is: the operator's, exp of a log_softmax, or exp(x) / exp(x).sum(axis)."""
    rank = len(shape(node))
    if rank >= 2 and node.target is aten.exp.default:
        inner = view.resolve(node.args[0])
        if inner.target is aten.log_softmax.int and view.users(inner) == [node]:
            return Softmax(view.resolve(inner.args[0]), argument(inner, 1, "dim") % rank, node, (inner, node))
    if rank >= 2 and node.target in SOFTMAX:
        return Softmax(view.resolve(node.args[0]), argument(node, 1, "dim") % rank, node, (node,))
    if rank < 2 or node.target is not aten.div.Tensor or not all(isinstance(each, Node) for each in node.args):
        return None
    exponential, total = (view.resolve(each) for each in node.args)
    if exponential.target is not aten.exp.default or total.target is not aten.sum.dim_IntList:
        return None
    axes, keepdim = argument(total, 1, "dim"), argument(total, 2, "keepdim", False)
    alone = set(view.users(exponential)) == {total, node} and view.users(total) == [node]
    if view.resolve(total.args[0]) is not exponential or not (keepdim and axes and len(axes) == 1 and alone):
        return None
    return Softmax(view.resolve(exponential.args[0]), axes[0] % rank, node, (exponential, total, node))


def softmax_core(softmax: Softmax, view: GraphView, walk: LayoutWalk) -> Core | None:
    """The attention around a softmax, or a near miss of one; None where there is no attention."""
    up = _Up(view, walk, softmax)
    weights, products, others = _down(view, softmax)
    if up.product is None:
        return _without_scores(softmax, up, products, others, walk)
    if not products:
        return _without_values(softmax, others)
    scores, values = up.product, products[0].product
    core = Core("softmax", _result(values), nodes=[scores.node])
    core.nodes += [*reversed(up.path), *up.asides(), *softmax.nodes, *weights, values.node]
    core.obstacles += up.obstacles
    core.scale = up.scale * scores.factor
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
        if step.target in _DROPOUTS and not _is_idle_dropout(step):
            reason = f"dropout on the attention weights is active (p = {step.args[1]}); call eval() before the capture"
            core.refuse(reason, step)
    _assign(core, up, products[0])
    return core


def _assign(core: Core, up: _Up, values: _Values) -> None:
    """Which operand is q, k and v: the softmax runs over k's tokens, and v is what the weights multiply."""
    scores = up.product
    assert scores is not None
    if scores.result_free[1] == up.key_axis:
        ordered = scores
    elif scores.result_free[0] == up.key_axis:
        ordered = scores.swapped()
    else:
        core.refuse("the softmax does not run over the keys", core.nodes[0])
        return
    ordered = _along_tokens(ordered, up.walk)
    core.q = Side(ordered.first, ordered.free[0], ordered.contracted[0], tuple(first for first, _ in ordered.slots))
    core.k = Side(ordered.second, ordered.free[1], ordered.contracted[1], tuple(second for _, second in ordered.slots))
    core.factors = up.factors(ordered, core)
    product = values.product
    if product.contracted[0] != values.axis:
        core.refuse("the second product does not sum over the axis that the softmax runs over", product.node)
        return
    product = _along_tokens(product, up.walk)
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


class _Up:
    """The way from a softmax back to the product of q and k.

    Attributes:
        product: the product of q and k; None if the way does not lead to one.
        path: the nodes between, from the softmax backwards.
        last: where the way ends.
        scale: the number that they multiply the product by.
        obstacles: what else they do.
    """

    def __init__(self, view: GraphView, walk: LayoutWalk, softmax: Softmax):
        self.view, self.walk = view, walk
        self.scale = 1.0
        self.path: list[Node] = []
        self.obstacles: list[Obstacle] = []
        self.product: Product | None = None
        self._keys_from_right = len(shape(softmax.result)) - softmax.axis
        self._even: list[Node] = []
        self._scalings: list[tuple[Node, Node]] = []
        node = self.last = softmax.scores
        for _ in range(2 * SEARCH):
            if (product := as_product(node)) is not None:
                self.product = product
                return
            following = self._step(node)
            if following is None:
                return
            self.path.append(node)
            node = self.last = self.view.resolve(following)

    @property
    def key_axis(self) -> int:
        """The axis of the product's result that the softmax runs over."""
        assert self.product is not None
        return len(shape(self.product.node)) - self._keys_from_right

    def asides(self) -> list[Node]:
        """What is made from the scores and taken off them again, such as their maximum."""
        assert self.product is not None
        scores = {self.product.node, *self.path}
        found: dict[Node, bool] = {}

        def comes_from_scores(node: Node, depth: int) -> bool:
            node = self.view.resolve(node)
            if node in scores:
                return True
            if node not in found and depth:
                found[node] = False  # while its own inputs are looked at
                answers = [comes_from_scores(each, depth - 1) for each in node.all_input_nodes]
                found[node] = any(answers)
            return found.get(node, False)

        for node in self._even:
            comes_from_scores(node, SEARCH)
        return [node for node, is_aside in found.items() if is_aside]

    def factors(self, scores: Product, core: Core) -> list[Factor]:
        """The tensors that scale the scores, which are told with q as their first operand."""
        factors = []
        side = Side(scores.first, scores.free[0], scores.contracted[0], tuple(first for first, _ in scores.slots))
        found = zip(scores.result_slots, scores.slots, strict=True)
        places = {place: first for place, (first, _) in found if first is not None}
        whole = shape(scores.node)
        for node, tensor in self._scalings:
            sizes = shape(tensor)
            first = len(whole) - len(sizes)
            wide = {first + axis for axis, size in enumerate(sizes) if not is_one(size)}
            if (
                not same_sizes(shape(node), whole)
                or not wide <= set(places)
                or not self.view.reachable(tensor, core.out.node.graph)
            ):
                differ = wide & set(scores.result_free)
                what = "that differs between tokens" if differ else "whose place among the heads is not known"
                core.refuse(f"the attention scores are multiplied by a tensor {what}", node)
                continue
            axes = tuple(places[first + axis] if first + axis in wide else None for axis in range(len(sizes)))
            factors.append(Factor(tensor, "div" in str(node.target), side, axes))
        return factors

    def _step(self, node: Node) -> Node | None:
        """The node before this one on the way, noting what stands there."""
        target = node.target
        if node.op != "call_function" or target in ENDS:
            return None
        if target in CASTS or target in COPIES:
            return node.args[0]
        if target in VIEWS:
            return self._view(node)
        if target in (*SCALINGS, aten.mul_.Tensor, aten.div_.Tensor):
            return self._scaling(node)
        if target in SUMS:
            return self._sum(node)
        if target in MASKINGS:
            return self._masking(node)
        ways = self._ways(node.all_input_nodes)
        if not ways:
            return None
        if target is aten.copy_.default:
            self._note("some of the attention scores are written over before the softmax", node)
        else:
            self._note(f"{operator_name(target)} stands between q·kᵀ and the softmax", node)
        return ways[0]

    def _note(self, reason: str, node: Node) -> None:
        self.obstacles.append(Obstacle(reason, node))

    def _view(self, node: Node) -> Node:
        """A view may only rearrange the leading axes; the key axis stays where it is, counted from the right."""
        if self._keys_from_right > 2 or not _same_last_two(shape(node.args[0]), shape(node)):
            self._note("the attention scores are reshaped across queries and keys", node)
        return node.args[0]

    def _scaling(self, node: Node) -> Node | None:
        """A number, or a tensor of one known entry, goes into the scale; another tensor is kept for `factors`."""
        first, second = node.args[:2]
        divides = "div" in str(node.target)
        if not isinstance(second, Node):
            self.scale = self.scale / second if divides else self.scale * second
            return first
        ways = self._ways([each for each in (first, second) if isinstance(each, Node)])
        if len(ways) != 1 or (divides and ways[0] is not first) or first is second:
            if ways:
                self._note(f"{operator_name(node.target)} stands between q·kᵀ and the softmax", node)
            return ways[0] if ways else None
        tensor = second if ways[0] is first else first
        number = self.walk.constant(tensor, node)
        if number is not None and number.numel() == 1:
            self.scale = self.scale / number.item() if divides else self.scale * number.item()
        else:
            self._scalings.append((node, tensor))
        return ways[0]

    def _sum(self, node: Node) -> Node | None:
        """What is the same for all keys of a query changes nothing in the softmax; neither does nothing at all."""
        tensors = [each for each in node.args[:2] if isinstance(each, Node)]
        if len(tensors) == 1 and tensors[0] is node.args[0]:
            return tensors[0]
        uneven = [each for each in tensors if not self._is_even(each)]
        if len(tensors) == 2 and len(uneven) == 1:
            way = uneven[0]
            self._even += [each for each in tensors if each is not way]
        else:
            ways = self._ways(tensors)
            if not ways:
                return None
            way = ways[0]
            if len(ways) > 1 or len(tensors) < 2 or tensors[0] is tensors[1]:
                self._note(f"{operator_name(node.target)} adds to the attention scores what is made from q or k", node)
            else:
                mask = next(each for each in tensors if each is not way)
                if not self.walk.is_always(mask, 0, node):
                    self._note(describe_mask(mask, self.walk), node)
        if way is not node.args[0] and ("sub" in str(node.target) or argument(node, 2, "alpha", 1) != 1):
            self._note(f"{operator_name(node.target)} changes the attention scores", node)
        return way

    def _is_even(self, node: Node) -> bool:
        """True if a tensor has one entry for all keys."""
        sizes = shape(node)
        axis = len(sizes) - self._keys_from_right
        return axis < 0 or is_one(sizes[axis])

    def _masking(self, node: Node) -> Node | None:
        """Some scores are replaced: harmless only if provably none is."""
        if "where" in str(node.target):
            condition, kept, other = node.args[:3]
            ways = self._ways([each for each in (kept, other) if isinstance(each, Node)])
            way, idle = (ways[0] if ways else None), 1 if ways and ways[0] is kept else 0
        else:
            way, condition = node.args[:2]
            idle = 0
        if way is not None and not self.walk.is_always(condition, idle, node):
            self._note(describe_mask(condition, self.walk), node)
        return way

    def _ways(self, nodes: list[Node]) -> list[Node]:
        return [node for node in dict.fromkeys(nodes) if self._leads_to_product(node)]

    def _leads_to_product(self, node: Node) -> bool:
        """True if a product is reached through elementwise steps and views within a few nodes."""
        for _ in range(SEARCH):
            node = self.view.resolve(node)
            if self._is_score_like(node):
                return True
            if node.op != "call_function" or node.target in ENDS:
                return False
            places = node.args[1:3] if "where" in str(node.target) else node.args[:1]
            following = next((each for each in places if isinstance(each, Node)), None)
            if following is None:
                return False
            node = following
        return False

    def _is_score_like(self, node: Node) -> bool:
        """A product that depends on the input and is no projection, which is a product with a weight.

        Nor a bias by letters, of queries and a table: SAM's.
        """
        if "input" not in self.walk.sources.get(node, ()) or as_product(node) is None:
            return False
        if node.target is aten.einsum.default:
            return all("input" in self.walk.sources.get(used, ()) for used in node.all_input_nodes)
        return not any(self._is_parameter(used) for used in node.all_input_nodes)

    def _is_parameter(self, node: Node) -> bool:
        """True for a weight as it is, or a view of one; not for learned queries, which are projected."""
        node = self.view.resolve(node)
        while node.target in (*VIEWS, *TURNS, *CASTS, *COPIES):
            node = self.view.resolve(node.args[0])
        return node.op in ("placeholder", "get_attr") and self.walk.sources.get(node) == {"weight"}


def _without_scores(
    softmax: Softmax, up: _Up, products: list[_Values], others: list[Node], walk: LayoutWalk
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
    is_input = up.last.op == "placeholder"
    if is_input:
        reason = f"the softmax runs over an input of this graph, {up.last.name}: how its numbers are made is not known"
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
    """Where the axis of keys is after a step that keeps the weights; None for any other step."""
    sizes, rank = shape(after), len(shape(before))
    if after.target in TURNS:
        order = turned(after)
        return order.index(axis) if order[:-2] == list(range(rank - 2)) else None
    if after.target in (*CASTS, *COPIES, *VIEWS, *_DROPOUTS):
        return len(sizes) - (rank - axis) if rank - axis <= 2 and _same_last_two(shape(before), sizes) else None
    return None


def _same_last_two(before: Sequence[Size], after: Sequence[Size]) -> bool:
    return min(len(before), len(after)) >= 2 and all(map(same, before[-2:], after[-2:]))


def _is_idle_dropout(node: Node) -> bool:
    return argument(node, 1, "p", 0.5) == 0 or not argument(node, 2, "train", False)
