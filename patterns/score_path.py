"""The path from a softmax back to the product of q and k, and everything that stands on it."""

from __future__ import annotations

import torch
from torch.fx import Node

from jetvit.patterns.aten_sets import CASTS, COPIES, MASKINGS, PERMUTES, SCALINGS, SUMS, VIEWS
from jetvit.patterns.calls import argument, shape
from jetvit.patterns.core import Core, Factor, Obstacle, Side
from jetvit.patterns.masks import describe_mask
from jetvit.patterns.products import Product, as_product
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import is_one, same_last_two, same_sizes
from jetvit.patterns.softmax import ENDS, SEARCH, Softmax
from jetvit.patterns.walk import LayoutWalk
from jetvit.patterns.wording import operator_name

aten = torch.ops.aten


class ScorePath:
    """The path from a softmax back to the product of q and k.

    Attributes:
        product: the product of q and k; None if the path does not lead to one.
        steps: the nodes between, from the softmax backwards.
        last: the node at which the path ends.
        scale: the number that the steps multiply the product by.
        obstacles: whatever else the steps do.
    """

    def __init__(self, view: GraphView, walk: LayoutWalk, softmax: Softmax):
        self.view, self.walk = view, walk
        self.scale = 1.0
        self.steps: list[Node] = []
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
            self.steps.append(node)
            node = self.last = self.view.resolve(following)

    @property
    def key_axis(self) -> int:
        """The axis of the product's result that the softmax runs over."""
        assert self.product is not None
        return len(shape(self.product.node)) - self._keys_from_right

    def asides(self) -> list[Node]:
        """Nodes made from the scores and taken off them again, such as their maximum."""
        assert self.product is not None
        scores = {self.product.node, *self.steps}
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
        """The tensors that scale the scores, which have q as their first operand."""
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
        """The node before this one on the path; notes its obstacles."""
        target = node.target
        if node.op != "call_function" or target in ENDS:
            return None
        if target in CASTS | COPIES:
            return node.args[0]
        if target in VIEWS:
            return self._view(node)
        if target in SCALINGS | {aten.mul_.Tensor, aten.div_.Tensor}:
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
        if self._keys_from_right > 2 or not same_last_two(shape(node.args[0]), shape(node)):
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
        """A sum; a term that is the same for all keys of a query, or zero, changes nothing in the softmax."""
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
        while node.target in VIEWS | PERMUTES | CASTS | COPIES:
            node = self.view.resolve(node.args[0])
        return node.op in ("placeholder", "get_attr") and self.walk.sources.get(node) == {"weight"}
