"""Arithmetic on sizes that are ints or SymInts, without adding guards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard, cast

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jetvit.torch_private import FloorDiv

Size = int | torch.SymInt


def is_static(size: Size) -> TypeGuard[int]:
    """True for a plain int, and for a SymInt that stands for one."""
    return isinstance(size, int) or size.node.expr.is_number


def expression(size: Size) -> sympy.Expr:
    """The sympy expression of a size."""
    return sympy.Integer(size) if isinstance(size, int) else size.node.expr


def same(a: Size, b: Size) -> bool:
    """True if the two sizes are equal for every value of their symbols, as far as can be proven."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    difference = expression(a) - expression(b)
    if difference.is_number or (difference := sympy.expand(difference)).is_number:
        return bool(difference == 0)
    return statically_known_true(a == b)


def same_sizes(a: Sequence[Size], b: Sequence[Size]) -> bool:
    """True if two shapes, or two tuples of strides, are provably the same."""
    return len(a) == len(b) and all(map(same, a, b))


def is_one(size: Size) -> bool:
    """True if the size is provably 1."""
    return bool(size == 1) if isinstance(size, int) else expression(size) == 1


def quotient(a: Size, b: Size) -> Size | None:
    """a / b where b provably divides a, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if same(a, b):
        return 1
    ratio = sympy.cancel(expression(a) / expression(b))
    if sympy.fraction(ratio)[1] != 1:
        return None
    # Not a // b: torch leaves the floor of a square by its side as it is, and that equals no other size.
    if ratio.is_number:
        return int(ratio)
    symbolic = next(size for size in (a, b) if isinstance(size, torch.SymInt))
    return cast(torch.SymInt, symbolic.node.shape_env.create_symintnode(ratio, hint=None))


def is_floor_of(part: Size, whole: Size, divisor: Size) -> bool:
    """True if part is written as whole // divisor."""
    return is_static(divisor) and expression(part) == FloorDiv(expression(whole), sympy.Integer(int(divisor)))


def same_last_two(a: Sequence[Size], b: Sequence[Size]) -> bool:
    """True if both have at least two axes, and the last two agree."""
    return min(len(a), len(b)) >= 2 and all(map(same, a[-2:], b[-2:]))
