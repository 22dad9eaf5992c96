"""Batched matrix products of two tensors, whichever operator writes them: `matmul`, `bmm`, `baddbmm`, `einsum`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.fx import Node

from jetvit.patterns.calls import argument, shape
from jetvit.patterns.walk import parse_einsum

aten = torch.ops.aten


@dataclass(frozen=True)
class Product:
    """A batched matrix product: which axis of each operand is contracted, and where the other axes go.

    contracted, free: of the first and of the second operand. result_free: where the free ones are in the result.
    leading: pairs of axes, of the first and of the second operand, that are taken together.
    result_leading: where each of these pairs is in the result.
    factor: a number that the product is multiplied by. added: a tensor that is added to it.
    """

    node: Node
    first: Node
    second: Node
    contracted: tuple[int, int]
    free: tuple[int, int]
    result_free: tuple[int, int]
    leading: tuple[tuple[int, int], ...]
    result_leading: tuple[int, ...]
    factor: float = 1.0
    added: Node | None = None

    def swapped(self) -> Product:
        """The same product, told from its second operand: aᵀ·bᵀ is (b·a)ᵀ."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            contracted=self.contracted[::-1],
            free=self.free[::-1],
            result_free=self.result_free[::-1],
            leading=tuple((b, a) for a, b in self.leading),
        )


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
        places = range(min(a, b) - 2)
        leading = tuple((a - 3 - i, b - 3 - i) for i in places)
        result_leading = tuple(out - 3 - i for i in places)
        free, result = (a - 2, b - 1), (out - 2, out - 1)
        return Product(node, first, second, (a - 1, b - 2), free, result, leading, result_leading, factor, added)
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
    # Of several letters that one operand has alone, as heads that share their keys, the first ones lead.
    free_a, free_b = (letters[-1] for letters in alone)
    first, second = node.args[1]
    shared = [letter for letter in a if letter in b and letter in result]
    return Product(
        node,
        first,
        second,
        (a.index(summed[0]), b.index(summed[0])),
        (a.index(free_a), b.index(free_b)),
        (result.index(free_a), result.index(free_b)),
        tuple((a.index(letter), b.index(letter)) for letter in shared),
        tuple(result.index(letter) for letter in shared),
    )
