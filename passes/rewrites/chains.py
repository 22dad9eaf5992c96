"""Chains of nodes that lead to a tensor: views, selections, permutations, copies, and what computes row by row."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch.fx import Node

from jetvit.passes.rewrites.strided import Strided
from jetvit.patterns.aten_sets import CASTS, COPIES, NORMS, PARTS, PERMUTES, SQUEEZES, VIEWS
from jetvit.patterns.axes import Axes
from jetvit.patterns.calls import argument, shape
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import same_sizes

aten = torch.ops.aten
_PERMUTES = PERMUTES | {aten.movedim.int}
_MOVES = COPIES - {aten.detach.default, aten.alias.default}  # these two never move memory
_SAME = COPIES | {aten.expand.default}
_VIEWS = (VIEWS | SQUEEZES) - _SAME  # an expand needs no reshape: it stays where it is
_SELECTIONS = PARTS | {aten.select.int, aten.slice.Tensor}
_ROW_WISE = CASTS | NORMS | {aten.linear.default}
_LINKS = _PERMUTES | _SAME | _VIEWS | _SELECTIONS | _ROW_WISE


@dataclass(frozen=True)
class Link:
    """One step of a chain.

    Args:
        node: what the step yields.
        step: the operator that makes it: the node itself, or what a `getitem` takes one of.
        before: what that reads.
    """

    node: Node
    step: Node
    before: Node

    @property
    def moves(self) -> int:
        """1 for a permutation or a copy, 0 for anything else."""
        if self.step.target not in _VIEWS:
            return int(self.step.target in _PERMUTES | _MOVES)
        try:
            self.before.meta["val"].view(shape(self.node))
        except (RuntimeError, ValueError):  # no strides give this shape
            return 1
        return 0

    def applied(self, state: Strided) -> Strided | None:
        """Apply the step to a view; None where its axes cannot be told."""
        target = self.step.target
        if target in _ROW_WISE:
            return state.computed(self.node)
        if target in _VIEWS | _PERMUTES:
            return state.rearranged(self.node)
        if target in _SELECTIONS:
            return self._selected(state)
        return state if same_sizes(shape(self.before), shape(self.node)) else None

    def _selected(self, state: Strided) -> Strided | None:
        target = self.step.target
        if target in (aten.select.int, aten.slice.Tensor, aten.unbind.int):
            dim = argument(self.step, 1, "dim", 0) % len(state.axes)
        else:
            dim = argument(self.step, 2, "dim", 0) % len(state.axes)
        if target in (aten.select.int, aten.unbind.int):
            index = argument(self.step, 2, "index") if target is aten.select.int else self.node.args[1]
            return state.selected(dim, index) if isinstance(index, int) else None
        if target is aten.slice.Tensor:
            start, stop, step = (argument(self.step, 2 + i, name) for i, name in enumerate(("start", "end", "step")))
            bounds = [start or 0, 2**63 - 1 if stop is None else stop, step or 1]
        else:
            lengths = [part.shape[dim] for part in self.step.meta["val"]]
            index = self.node.args[1]
            bounds = [sum(lengths[:index]), sum(lengths[: index + 1]), 1]
        return state.sliced(dim, *bounds) if all(isinstance(bound, int) for bound in bounds) else None


def chain_to(node: Node, view: GraphView) -> list[Link]:
    """The steps that lead to a tensor, the first one first; none where something else computes it."""
    links: list[Link] = []
    node = view.resolve(node)
    while (link := _link(node, view)) is not None:
        links.append(link)
        node = link.before
    return links[::-1]


def follow(links: list[Link]) -> tuple[Strided, int]:
    """The straight way along a chain, and how many permutations and copies it saves.

    What stands there already is taken as it is: the views before the first permutation or copy, and a node of the same
    view further up, where calls of one's own would make no fewer of them.
    """
    state, moves = Strided.of(links[0].before), 0
    passed: list[tuple[Link, Axes, int]] = []
    for link in links:
        moved = link.moves
        stands = state.is_tensor(link.before) and not moved and link.step.target not in SQUEEZES
        following = None if stands else link.applied(state)
        if following is None:
            state, moves = Strided.of(link.node), 0
        else:
            state, moves = following, moves + moved
            passed.append((link, state.axes, moves))
    straight = state.finished(shape(links[-1].node))
    for link, axes, before in passed:
        if axes == state.axes and before <= straight.moves:
            return Strided.of(link.node), moves - before
    return straight, moves - straight.moves


def _link(node: Node, view: GraphView) -> Link | None:
    step = view.resolve(node.args[0]) if node.target is operator.getitem else node
    if step.target not in _LINKS or (step is node) is (step.target in PARTS):
        return None
    if step.target in NORMS and len(step.args[1]) != 1:
        return None
    before = view.resolve(step.args[0])
    return Link(node, step, before if view.visible(before, step.graph) else step.args[0])
