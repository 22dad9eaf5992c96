"""Exact: attention reads the products that make q, k and v, and the next product reads its result, through views alone.

Models permute q, k and v to heads first, and the result back. The operators take any strides, so what is left of
`reshape(B, N, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)` and its like is a view and a selection. Covered: chains of
views, selections, permutations and copies, with casts, norms and linear layers between, which compute row by row and so
may run before a permutation as well as after it. One permutation stays where the order in memory is another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.fx import Node

from jetvit.passes.graph.base import PassResult
from jetvit.passes.graph.insertion import Insertion
from jetvit.passes.graph.layouts import views_to_reshapes
from jetvit.passes.graph.regions import drop_dead_code, submodules
from jetvit.passes.graph.rewritable import RewritableGraph, on_fake_tensors
from jetvit.passes.rewrites.chains import chain_to, follow
from jetvit.passes.rewrites.strided import Strided
from jetvit.patterns.aten_sets import CASTS, LAYOUTS, SDPA
from jetvit.patterns.calls import shape
from jetvit.patterns.errors import RewriteError
from jetvit.patterns.operator_args import qkv_of
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import same, same_sizes
from jetvit.patterns.storage import storage, written
from jetvit.torch_private import OpOverload, pytree

aten = torch.ops.aten
# Their results have strides of their own.
_ANY_STRIDES = {aten.linear.default, aten.layer_norm.default, aten.new_empty.default, SDPA}


@dataclass(frozen=True)
class StraightenViews:
    """Let views take the place of permutations and copies around each attention, wherever that leaves fewer of them."""

    name: ClassVar[str] = "straighten-views"

    def __call__(self, graph: RewritableGraph) -> PassResult:
        for module in submodules(graph.module):
            drop_dead_code(module.graph)  # what an attention left behind still reads its operands
        sites = graph.sites()
        fired = 0
        for node in [each.node for each in sites.rewritten] + [site.out.node for site in sites]:
            if _is_operator(node):
                surroundings = _Surroundings(graph, node)
                fired += surroundings.straighten_operands() + surroundings.straighten_results()
            elif node.target is SDPA:  # the strides of its result are its backend's
                fired += _Surroundings(graph, node).straighten_operands()
        return PassResult(fired)


class _Surroundings:
    """The nodes before and after one attention.

    Args:
        graph: the graph to change.
        attention: a call of SDPA or of an operator of jetvit, which take any strides that are 1 along the last axis.
    """

    def __init__(self, graph: RewritableGraph, attention: Node):
        self.graph, self.attention = graph, attention
        self.view = GraphView(graph.module, graph.ambient_autocast)
        self.written = written(self.view)
        self._mode = graph.fake_mode
        self._insertions: dict[Node, Insertion] = {}

    def straighten_operands(self) -> int:
        """Straighten what leads to q, k and v; returns how many of them it changed."""
        return sum(self._straighten_operand(operand) for operand in dict.fromkeys(qkv_of(self.attention)))

    def straighten_results(self) -> int:
        """Straighten what leads from the result to its readers; returns how many tensors it changed."""
        return sum(self._straighten_result(node) for node in list(self._results()))

    def _straighten_operand(self, operand: Node) -> bool:
        straight = self._straight(operand)
        if straight is None or not same(straight.value.stride(-1), 1):
            return False
        readers = {user for user in operand.users if user is self.attention or user.target is aten.new_empty.default}
        first = next(node for node in self.attention.graph.nodes if node in readers)
        if (result := self._emit(straight, first)) is None:
            return False
        for reader in readers:
            reader.replace_input_with(operand, result)
        return True

    def _straighten_result(self, node: Node) -> bool:
        straight = self._straight(node) if node.users else None
        if straight is None or straight.node is not self.attention:
            return False
        return _takes_strides(node, straight.value) and self._replace(node, straight)

    def _results(self) -> Iterator[Node]:
        """The nodes read of the attention's result, through views and up to the next product; the nearest first."""
        queue = [(self.attention, False)]
        for node, multiplied in queue:
            users = self.view.users(node)
            if node is not self.attention and any(user.target not in LAYOUTS for user in users):
                yield node
            for user in users:
                product = user.target is aten.linear.default and self.view.resolve(user.args[0]) is node
                if user.target in LAYOUTS | CASTS or (product and not multiplied):
                    queue.append((user, multiplied or product))

    def _straight(self, node: Node) -> Strided | None:
        """The straight way to a tensor; None if it is straight already, or if something forbids another one."""
        links = chain_to(node, self.view)
        memory = [link.before for link in links[:1]] + [link.node for link in links]
        if not links or any(storage(each, self.view) in self.written for each in memory):
            return None
        with on_fake_tensors(self._mode):
            straight, saved = follow(links)
            computed = [call.row_wise for call in straight.calls if call.row_wise is not None]
            stand_ins = [(old, after.finished(shape(old)).value) for old, after in computed]
        if saved <= 0 or not all(_takes_strides(old, value) for old, value in stand_ins):
            return None
        return straight

    def _emit(self, straight: Strided, place: Node) -> Node | None:
        """Make the calls before a node, or, what a row-wise operator reads, before that.

        None where a symbolic size cannot be had; what was changed until then is as good as before.
        """
        node = straight.node
        for index, call in enumerate(straight.calls):
            before = next((later.row_wise[0] for later in straight.calls[index:] if later.row_wise), place)
            insertion = self._at(before)
            try:
                args = pytree.tree_map_only(torch.SymInt, insertion.size, call.args)
            except RewriteError:
                return None
            node = insertion.bring(node)
            if call.row_wise is None and (made := _made_before(before, call.target, node, *args)) is not None:
                node = made
                continue
            node = insertion.call(call.target, node, *args, **call.kwargs)
            if call.row_wise is not None:
                with on_fake_tensors(self._mode):
                    stand_in = replace(call.row_wise[1], node=node).finished(shape(before))
                if not self._replace(before, stand_in):
                    return None
        return self._at(place).bring(node)

    def _at(self, place: Node) -> Insertion:
        """New nodes before a node."""
        if place not in self._insertions:
            self._insertions[place] = Insertion(self.graph, place, self.view)
        return self._insertions[place]

    def _replace(self, node: Node, straight: Strided) -> bool:
        """Let all that reads a node read the same by the straight way."""
        if (result := self._emit(straight, node)) is None:
            return False
        node.replace_all_uses_with(result)
        views_to_reshapes(result)
        return True


def _made_before(place: Node, target: object, tensor: Node, *args: object) -> Node | None:
    """A node before another one that makes this call already."""
    calls = (user for user in tensor.users if user.target is target and user.args == (tensor, *args))
    return next((user for user in calls if not user.kwargs and user < place), None)


def _takes_strides(node: Node, value: torch.Tensor) -> bool:
    """True if all that reads a node may read a tensor with the strides of `value` in its place.

    A `view` of it may be relaxed. One behind an elementwise operator, which hands the strides on, may not; nor may a
    region or a caller get other strides than those of the example.
    """
    if same_sizes(node.meta["val"].stride(), value.stride()):
        return True
    stack, seen = [(node, True)], {node}
    while stack:
        each, direct = stack.pop()
        for user in each.users:
            if user.op == "output" and value.is_contiguous() and each.meta["val"].is_contiguous():
                continue  # behind an elementwise operator, whose other operands have set its strides
            if user.target in _ANY_STRIDES or _is_operator(user):
                continue
            view = user.target in LAYOUTS and user.target is not aten._unsafe_view.default
            relaxed = view and (direct or user.target is not aten.view.default)
            if not relaxed and not _is_elementwise(user):
                return False
            if user not in seen:
                seen.add(user)
                stack.append((user, direct and view))
    return True


def _is_operator(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target.namespace == "jetvit"


def _is_elementwise(node: Node) -> bool:
    return node.target in CASTS or (isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags)
