"""The few forms of attention: one SDPA node, a softmax between two products, or the operator that FuseAttention makes.

`find_cores` reads them off the graph with their scale, whatever stands between the two products: scalings on q, on k,
on both or on the product; upcasts; dropout that does nothing; views of the leading axes. Anything else that stands
there is kept as an `Obstacle`, so that a near miss is an answer with a reason and not silence.

Covered products: `matmul`, `bmm`, `baddbmm`, `einsum` with explicit letters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.fx import Node

from jetvit.patterns.calls import argument, shape
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import same
from jetvit.patterns.walk import LayoutWalk, parse_einsum

aten = torch.ops.aten

SDPA = aten.scaled_dot_product_attention.default
OPERATOR = "jetvit.full_attention.default"
"""By name: the operators are registered in another room."""
FUSED = (aten._transformer_encoder_layer_fwd.default, aten._native_multi_head_attention.default)
SOFTMAX = (aten.softmax.int, aten._softmax.default)
CASTS = (aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default)
COPIES = (aten.contiguous.default, aten.clone.default, aten.detach.default, aten.alias.default)
TURNS = (aten.transpose.int, aten.permute.default, aten.t.default, aten.mT.default, aten.swapaxes.default)
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default,
         aten.flatten.using_ints, aten.unflatten.int)  # fmt: skip
SCALINGS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
SUMS = (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor)
MASKINGS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.masked_fill_.Scalar, aten.masked_fill_.Tensor,
            aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)  # fmt: skip
_SEARCH = 12  # how many steps back from a softmax a product of q and k may stand for a near miss to be told


@dataclass(frozen=True)
class Side:
    """One operand of a core: its node, its token axis and its head_dim axis; the others lead (batch, heads)."""

    node: Node
    token: int
    dim: int

    @property
    def leading(self) -> list[int]:
        """The batch and head axes, in order."""
        return [axis for axis in range(len(shape(self.node))) if axis not in (self.token, self.dim)]


@dataclass(frozen=True)
class Obstacle:
    """Why a core is not plain full attention, and at which node."""

    reason: str
    node: Node


@dataclass
class Core:
    """softmax(scale · q·kᵀ)·v somewhere in a graph, or something close to it (then `obstacles` is not empty).

    `nodes` are those of the attention itself; `peeled` are the scalings, transposes and upcasts between q, k, v and the
    first product, which the core has taken into its scale and its axes. `pairs` are the leading axes that the products
    take together: they have to be the same batch or the same heads.
    """

    form: str
    out: Side
    q: Side | None = None
    k: Side | None = None
    v: Side | None = None
    scale: float = 1.0
    nodes: list[Node] = field(default_factory=list)
    peeled: list[Node] = field(default_factory=list)
    pairs: list[tuple[Node, int, Node, int]] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)

    def refuse(self, reason: str, node: Node) -> None:
        """Note a reason against this core."""
        self.obstacles.append(Obstacle(reason, node))


@dataclass(frozen=True)
class _Product:
    """A batched matrix product: which axis of each operand is contracted, and where the free axes go."""

    node: Node
    first: Node
    second: Node
    contracted: tuple[int, int]
    free: tuple[int, int]
    result_free: tuple[int, int]
    leading: tuple[tuple[int, int], ...]
    factor: float = 1.0
    added: Node | None = None


def find_cores(view: GraphView, walk: LayoutWalk) -> Iterator[Core]:
    """Every attention and near miss of a graph, in the order of execution of their results."""
    for node in view.nodes:
        core = None
        if node.target is SDPA:
            core = _from_sdpa(node, walk)
        elif str(node.target) == OPERATOR:
            core = operator_core(node)
            core.scale = float(node.args[8])
        elif node.target in FUSED:
            core = Core("fused", Side(node, 0, 0), nodes=[node])
            core.refuse(
                f"{node.target} runs the attention inside a larger operator; call "
                "torch.backends.mha.set_fastpath_enabled(False) before the capture",
                node,
            )
        elif node.target in SOFTMAX:
            core = _from_softmax(node, view, walk)
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
            return Side(node, side.token, side.dim), factor
        before = node.args[0] if node.args else node
        if node.target in TURNS:
            order = list(range(len(shape(node))))
            if node.target is aten.permute.default:
                order = [dim % len(order) for dim in node.args[1]]
            else:
                first, second = (dim % len(order) for dim in (node.args[1:] or (-2, -1)))
                order[first], order[second] = order[second], order[first]
            side = Side(before, order[side.token], order[side.dim])
        elif narrow and node.target in SCALINGS and isinstance(node.args[1], int | float):
            factor = factor / node.args[1] if "div" in str(node.target) else factor * node.args[1]
            side = Side(before, side.token, side.dim)
        elif narrow and node.target in CASTS and before.meta["val"].dtype == narrow:
            side = Side(before, side.token, side.dim)
        else:
            return Side(node, side.token, side.dim), factor
        core.peeled.append(node)


def operator_core(node: Node) -> Core:
    """The core of an operator of jetvit, which takes and gives [batch, token, head, dim]."""
    q, k, v = (Side(operand, 1, 3) for operand in node.args[:3])
    absent = [each for each in node.all_input_nodes if each.target is aten.new_empty.default]  # reads no value of q
    core = Core("operator", Side(node, 1, 3), q, k, v, nodes=[node, *absent])
    core.pairs = [(q.node, dim, other.node, dim) for other in (k, v) for dim in (0, 2)]
    return core


def _from_sdpa(node: Node, walk: LayoutWalk) -> Core:
    query, key, value = node.args[:3]
    rank, head_dim = len(shape(node)), shape(query)[-1]
    scale = argument(node, 6, "scale")
    q, k, v = (Side(each, rank - 2, rank - 1) for each in (query, key, value))
    core = Core("sdpa", Side(node, rank - 2, rank - 1), q, k, v, nodes=[node])
    core.pairs = [(query, dim, other, dim) for other in (key, value) for dim in range(rank - 2)]
    core.scale = float(scale) if isinstance(scale, int | float) else 1.0 / math.sqrt(int(head_dim))
    if isinstance(scale, Node):
        core.refuse("the softmax scale is not a constant", node)
    if argument(node, 7, "enable_gqa", False):
        core.refuse("grouped-query attention: several query heads share one key head", node)
    if argument(node, 5, "is_causal", False):
        core.refuse("causal attention", node)
    if dropout := argument(node, 4, "dropout_p", 0.0):
        core.refuse(f"dropout on the attention weights is active (p = {dropout}); call eval() before the capture", node)
    mask = argument(node, 3, "attn_mask")
    if mask is not None and not _is_neutral_mask(mask, walk):
        core.refuse(_describe_mask(mask, walk), mask)
    return core


def _from_softmax(softmax: Node, view: GraphView, walk: LayoutWalk) -> Core | None:
    rank = len(shape(softmax))
    if rank < 2:
        return None
    key_axis = argument(softmax, 1, "dim") % rank
    up = _Up(view, walk, softmax, key_axis)
    scores = up.product
    if scores is None:
        return None
    weights, products, others = _down(view, softmax)
    if not products:
        return _without_values(softmax, others)
    last = products[0]
    core = Core("softmax", Side(last.node, last.result_free[0], last.result_free[1]), nodes=[scores.node])
    core.nodes += [*reversed(up.path), softmax, *weights, last.node]
    core.pairs = [(product.first, a, product.second, b) for product in (scores, last) for a, b in product.leading]
    core.obstacles += up.obstacles
    core.scale = up.scale * scores.factor
    if scores.added is not None and not walk.is_always(scores.added, 0):
        core.refuse(_describe_mask(scores.added, walk), scores.node)
    if last.factor != 1.0 or last.added is not None:
        core.refuse("something is added to the second product, or it is scaled", last.node)
    for other in others:
        what = "returned" if other.op == "output" else f"used by {other.name} ({other.target})"
        core.refuse(f"the attention weights are {what}", other)
    if len(products) > 1:
        core.refuse("the attention weights multiply more than one tensor", products[1].node)
    for step in (scores.node, *up.path, softmax, *weights[:-1]):
        used = [user for user in view.users(step) if user not in core.nodes]
        if used and step is not softmax:
            core.refuse(f"the attention scores are also used by {used[0].name} ({used[0].target})", used[0])
    for step in weights:
        if step.target in (aten.dropout.default, aten.native_dropout.default) and not _is_idle_dropout(step):
            reason = f"dropout on the attention weights is active (p = {step.args[1]}); call eval() before the capture"
            core.refuse(reason, step)
    _assign(core, scores, last, key_axis, up.key_result_axis)
    return core


def _assign(core: Core, scores: _Product, last: _Product, key_axis: int, key_result_axis: int) -> None:
    """Which operand is q, k and v: the softmax runs over k's tokens, and v is what the weights multiply."""
    if scores.result_free[1] == key_result_axis:
        query, key, index = scores.first, scores.second, (0, 1)
    elif scores.result_free[0] == key_result_axis:
        query, key, index = scores.second, scores.first, (1, 0)
    else:
        core.refuse("the softmax does not run over the keys", core.nodes[0])
        return
    core.q = Side(query, scores.free[index[0]], scores.contracted[index[0]])
    core.k = Side(key, scores.free[index[1]], scores.contracted[index[1]])
    if last.contracted[0] != key_axis:
        core.refuse("the second product does not sum over the axis that the softmax runs over", last.node)
        return
    core.v = Side(last.second, last.contracted[1], last.free[1])


class _Up:
    """The way from a softmax back to the product of q and k."""

    def __init__(self, view: GraphView, walk: LayoutWalk, softmax: Node, key_axis: int):
        self.view, self.walk = view, walk
        self.scale = 1.0
        self.path: list[Node] = []
        self.obstacles: list[Obstacle] = []
        self.product: _Product | None = None
        self.key_result_axis = key_axis
        node = view.resolve(softmax.args[0])
        for _ in range(_SEARCH):
            if (product := _as_product(node)) is not None:
                self.product = product
                return
            following = self._step(node)
            if following is None:
                return
            self.path.append(node)
            node = view.resolve(following)

    def _step(self, node: Node) -> Node | None:
        """The node before this one on the way, noting what stands there."""
        target = node.target
        if target in CASTS or target in COPIES:
            return node.args[0]
        if target in VIEWS:
            return self._view(node)
        if target in SCALINGS and isinstance(node.args[1], int | float):
            self.scale = self.scale / node.args[1] if "div" in str(target) else self.scale * node.args[1]
            return node.args[0]
        if target in SUMS or target in MASKINGS:
            return self._mask(node)
        tensors = [used for used in node.all_input_nodes if self._leads_to_product(used)]
        if len(tensors) != 1 or node.op != "call_function":
            return None
        self.obstacles.append(Obstacle(f"{node.target} stands between q·kᵀ and the softmax", node))
        return tensors[0]

    def _view(self, node: Node) -> Node | None:
        """A view may only rearrange the leading axes; the key axis stays where it is, counted from the right."""
        before, after = shape(node.args[0]), shape(node)
        from_right = len(after) - self.key_result_axis
        if (
            len(before) < 2
            or from_right > 2
            or not all(same(b, a) for b, a in zip(before[-2:], after[-2:], strict=True))
        ):
            self.obstacles.append(Obstacle("the attention scores are reshaped across queries and keys", node))
        self.key_result_axis = len(before) - from_right
        return node.args[0]

    def _mask(self, node: Node) -> Node | None:
        """Something is added to the scores, or some of them are replaced: harmless only if provably nothing."""
        tensors = node.all_input_nodes
        ways = [used for used in tensors if self._leads_to_product(used)]
        if len(ways) != 1:
            return None
        operands = [each for each in node.args if isinstance(each, Node)]
        if is_sum := node.target in SUMS:
            plain = len(node.args) == 2 and not node.kwargs and (len(operands) == 1 or operands[0] is not operands[1])
            plain = plain and (node.args[0] is ways[0] or "sub" not in str(node.target))
        else:
            plain = "where" not in str(node.target) and node.args[0] is ways[0]
        masks = [used for used in tensors if used is not ways[0]]
        if masks and not self.walk.is_always(masks[0], 0):
            self.obstacles.append(Obstacle(_describe_mask(masks[0], self.walk), node))
        elif not masks and not is_sum:
            self.obstacles.append(Obstacle(_describe_mask(node, self.walk), node))
        elif not plain:
            self.obstacles.append(Obstacle(f"{node.target} changes the attention scores", node))
        return ways[0]  # a number added to every score changes nothing in the softmax

    def _leads_to_product(self, node: Node) -> bool:
        """True if a product is reached through elementwise steps and views within a few nodes."""
        frontier = [node]
        for _ in range(_SEARCH):
            frontier = [self.view.resolve(each) for each in frontier]
            if any(_as_product(each) is not None and self._is_score_like(each) for each in frontier):
                return True
            frontier = [each.args[0] for each in frontier if each.op == "call_function" and each.args
                        and isinstance(each.args[0], Node)]  # fmt: skip
        return False

    def _is_score_like(self, node: Node) -> bool:
        """A product of two tensors that both depend on the input: a product with a weight is a projection."""
        return (
            "input" in self.walk.sources.get(node, ())
            and _as_product(node) is not None
            and not any(
                used in self.walk.sources and self.walk.sources[used] == {"weight"} for used in node.all_input_nodes
            )
        )


def _without_values(softmax: Node, others: list[Node]) -> Core | None:
    """A softmax over q·kᵀ whose result no product reads directly: a near miss if it has heads, else no attention."""
    if len(shape(softmax)) < 3 or not others:
        return None
    core = Core("softmax", Side(softmax, 0, 0), nodes=[softmax])
    core.refuse(f"the attention weights are used by {others[0].name} ({others[0].target}), not by a product", others[0])
    return core


def _down(view: GraphView, softmax: Node) -> tuple[list[Node], list[_Product], list[Node]]:
    """From a softmax to the product with v: the steps between, the products, and any other user of the weights."""
    steps: list[Node] = []
    products: list[_Product] = []
    others: list[Node] = []
    frontier = [softmax]
    while frontier:
        node = frontier.pop()
        for user in view.users(node):
            product = _as_product(user)
            if product is not None and view.resolve(product.first) is node:
                products.append(product)
            elif user.target in (*CASTS, *COPIES, *VIEWS, aten.dropout.default) and _keeps_keys(node, user):
                steps.append(user)
                frontier.append(user)
            else:
                others.append(user)
    return steps, products, others


def _keeps_keys(before: Node, after: Node) -> bool:
    return all(same(b, a) for b, a in zip(shape(before)[-2:], shape(after)[-2:], strict=True))


def _as_product(node: Node) -> _Product | None:
    """A node as a batched product of two tensors, or None."""
    target = node.target
    if target in (aten.matmul.default, aten.bmm.default, aten.baddbmm.default):
        fused = target is aten.baddbmm.default
        first, second = node.args[1:3] if fused else node.args[:2]
        a, b, out = len(shape(first)), len(shape(second)), len(shape(node))
        if min(a, b) < 2:
            return None
        factor = float(argument(node, 4, "alpha", 1)) if fused else 1.0
        added = node.args[0] if fused and argument(node, 3, "beta", 1) != 0 else None
        leading = tuple((a - 3 - i, b - 3 - i) for i in range(min(a, b) - 2))
        free, result = (a - 2, b - 1), (out - 2, out - 1)
        return _Product(node, first, second, (a - 1, b - 2), free, result, leading, factor, added)
    if target is aten.einsum.default and len(node.args[1]) == 2:
        parsed = parse_einsum(node.args[0])
        return _from_letters(node, *parsed) if parsed else None
    return None


def _from_letters(node: Node, terms: list[str], result: str) -> _Product | None:
    a, b = terms
    summed = [letter for letter in a if letter in b and letter not in result]
    free_a = [letter for letter in a if letter not in b]
    free_b = [letter for letter in b if letter not in a]
    if not (len(summed) == len(free_a) == len(free_b) == 1) or set(result) - set(a + b):
        return None
    first, second = node.args[1]
    return _Product(
        node,
        first,
        second,
        (a.index(summed[0]), b.index(summed[0])),
        (a.index(free_a[0]), b.index(free_b[0])),
        (result.index(free_a[0]), result.index(free_b[0])),
        tuple((a.index(letter), b.index(letter)) for letter in a if letter in b and letter in result),
    )


def _is_idle_dropout(node: Node) -> bool:
    return argument(node, 1, "p", 0.5) == 0 or not argument(node, 2, "train", False)


def _is_neutral_mask(mask: Node, walk: LayoutWalk) -> bool:
    """A boolean mask that is all True, or an additive one that is all zero."""
    value = mask.meta.get("val")
    boolean = isinstance(value, torch.Tensor) and value.dtype is torch.bool
    return walk.is_always(mask, 1 if boolean else 0)


def _describe_mask(mask: Node, walk: LayoutWalk) -> str:
    value = mask.meta.get("val")
    boolean = isinstance(value, torch.Tensor) and value.dtype is torch.bool
    sources = walk.sources.get(walk.view.resolve(mask), frozenset())
    if boolean:
        return "a boolean mask hides some keys"
    if sources == {"weight"}:
        return "a learned bias is added to the scores (relative-position bias)"
    if not sources:
        return "a constant mask is added to the scores"
    return "an additive mask or bias that depends on the input is added to the scores"
