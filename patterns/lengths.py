"""The sizes of one graph as numbers and expressions, equal ones written alike.

The tracer writes the length of `arange(0.5, n)` as ceil((n − 0.5) / 1), and the length of all that is made of it too:
here it is n.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import sympy
import torch
from torch.fx import Node

from jetvit.patterns.calls import shape
from jetvit.patterns.sizes import Size, expression, is_static

Length: TypeAlias = int | sympy.Expr
_ARANGES = (torch.ops.aten.arange.start, torch.ops.aten.arange.start_step)


class Lengths:
    """Sizes in one way of writing.

    Args:
        nodes: the nodes of the graph, whose `arange` calls tell which expressions are the same number.
    """

    def __init__(self, nodes: Iterable[Node]):
        self._same: dict[sympy.Expr, sympy.Expr] = {}
        self._known: dict[sympy.Expr, Length] = {}
        for node in nodes:
            if node.target in _ARANGES and (length := _plain_length(node)) is not None:
                self._same[expression(shape(node)[0])] = length

    def of(self, size: Size) -> Length:
        """A size as a number, or as an expression."""
        if isinstance(size, int) or is_static(size):
            return int(size)
        raw = expression(size)
        if raw not in self._known:
            self._known[raw] = _plain(sympy.expand(raw.xreplace(self._same)))
        return self._known[raw]

    def shape(self, node: Node) -> tuple[Length, ...]:
        """The sizes of the tensor that a node yields."""
        return tuple(self.of(size) for size in shape(node))


def total(*lengths: Length) -> Length:
    """The sum of some lengths."""
    result = sum(lengths)
    return result if isinstance(result, int) else _plain(sympy.expand(result))


def product(lengths: Iterable[Length]) -> Length:
    """The product of some lengths, multiplied out."""
    result: Length = 1
    for length in lengths:
        result = result * length
    return result if isinstance(result, int) else _plain(sympy.expand(result))


def quotient(a: Length, b: Length) -> Length | None:
    """a / b where b provably divides a, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if a == b:
        return 1
    ratio = sympy.cancel(a / b)
    if sympy.fraction(ratio)[1] != 1:
        return None
    return _plain(ratio)


def _plain(length: sympy.Expr) -> Length:
    return int(length) if length.is_Integer else length


def _plain_length(node: Node) -> sympy.Expr | None:
    """end − ⌊start⌋, the length of an `arange` of step 1 to an integer end, where it is written in another way.

    A start that is a multiple of one half is exact in floating point, so that nothing is rounded on the way.
    """
    start, end = node.args[:2]
    step = node.args[2] if len(node.args) > 2 else node.kwargs.get("step", 1)
    end = end.meta.get("val") if isinstance(end, Node) else end
    if step != 1 or not isinstance(end, torch.SymInt) or not isinstance(start, int | float) or 2 * start % 1:
        return None
    length = shape(node)[0]
    return None if is_static(length) else end.node.expr - int(start // 1)
