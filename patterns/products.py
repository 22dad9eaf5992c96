"""Batched matrix products of two tensors, whichever operator writes them: `matmul`, `bmm`, `baddbmm`, `einsum`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from jetvit.patterns.calls import argument, shape
from jetvit.patterns.einsum import parse_einsum

aten = torch.ops.aten


@dataclass(frozen=True)
class Product:
    """A batched matrix product: which axis of each operand is contracted, and where the other axes go.

    contracted, free: of the first and of the second operand. result_free: where the free ones are in the result.
    slots: for each other axis of the result, in order, the axes of the first and of the second operand that it comes
    from; None for an operand that has no such axis. result_slots: where these axes are in the result.
    factor: a number that the product is multiplied by. added: a tensor that is added to it.
    """

    node: Node
    first: Node
    second: Node
    contracted: tuple[int, int]
    free: tuple[int, int]
    result_free: tuple[int, int]
    slots: tuple[tuple[int | None, int | None], ...]
    result_slots: tuple[int, ...]
    factor: float = 1.0
    added: Node | None = None

    @property
    def leading(self) -> list[tuple[int, int]]:
        """Pairs of axes, of the first and of the second operand, that are taken together."""
        return [(first, second) for first, second in self.slots if first is not None and second is not None]

    @property
    def lone(self) -> list[int]:
        """The axes that the first operand has alone: the free one, and others as heads that share their keys."""
        return [self.free[0], *(first for first, second in self.slots if first is not None and second is None)]

    def with_free(self, axis: int) -> Product:
        """The same product with another of its `lone` axes as the free one of the first operand."""
        if axis == self.free[0]:
            return self
        number = self.slots.index((axis, None))
        places = dict(zip(self.result_slots, self.slots, strict=True))
        del places[self.result_slots[number]]
        places[self.result_free[0]] = (self.free[0], None)
        return replace(
            self,
            free=(axis, self.free[1]),
            result_free=(self.result_slots[number], self.result_free[1]),
            slots=tuple(places[place] for place in sorted(places)),
            result_slots=tuple(sorted(places)),
        )

    def swapped(self) -> Product:
        """The same product, told from its second operand: aᵀ·bᵀ is (b·a)ᵀ."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            contracted=self.contracted[::-1],
            free=self.free[::-1],
            result_free=self.result_free[::-1],
            slots=tuple((b, a) for a, b in self.slots),
        )


def aligned_right(count: int, rank: int) -> list[int | None]:
    """The first `count` axes of an operand, aligned from the right with those of a result; None where it has none."""
    return [None] * (rank - count) + list(range(count))


def as_product(node: Node) -> Product | None:
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
        free, result = (a - 2, b - 1), (out - 2, out - 1)
        slots = tuple(zip(aligned_right(a - 2, out - 2), aligned_right(b - 2, out - 2), strict=True))
        return Product(node, first, second, (a - 1, b - 2), free, result, slots, tuple(range(out - 2)), factor, added)
    if target is aten.einsum.default and len(node.args[1]) == 2:
        parsed = parse_einsum(node.args[0], [len(shape(operand)) for operand in node.args[1]])
        return _from_letters(node, *parsed) if parsed else None
    return None


def _from_letters(node: Node, terms: list[str], result: str) -> Product | None:
    a, b = terms
    summed = [letter for letter in a if letter in b and letter not in result]
    alone = [[letter for letter in result if letter in one and letter not in other] for one, other in ((a, b), (b, a))]
    if len(summed) != 1 or not all(alone) or set(a + b) != {*result, *summed}:
        return None
    # Of several letters that one operand has alone, as heads that share their keys, the last one is the free one.
    free_a, free_b = (letters[-1] for letters in alone)
    first, second = node.args[1]
    others = [letter for letter in result if letter not in (free_a, free_b)]
    places = [{letter: place for place, letter in enumerate(term)} for term in (a, b)]
    return Product(
        node,
        first,
        second,
        (a.index(summed[0]), b.index(summed[0])),
        (a.index(free_a), b.index(free_b)),
        (result.index(free_a), result.index(free_b)),
        tuple((places[0].get(letter), places[1].get(letter)) for letter in others),
        tuple(result.index(letter) for letter in others),
    )
