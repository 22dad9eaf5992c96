"""The values that single entries of tensors are computed from, read off the graph; nothing is run.

`Entries.value` follows the entry of a tensor at a generic place back through views, joins and elementwise operators to
the values that it is computed from, each with the place that it has in its own tensor. Two entries of one value are
equal, and an entry depends on no coordinate that its value does not name: for every size, input and buffer.

A place is a tuple of indices, one an axis. An index is a number in mixed radix: digits in row-major order, each a
number or the name of a coordinate, so that views only deal them out anew. What is not understood is no error: the
entry of a tensor at a place is a value too, and depends on all coordinates of its place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from jetvit.patterns.aten_sets import CASTS, COPIES, PERMUTES, ROW_MAJOR, SPLITS
from jetvit.patterns.calls import argument, permutation
from jetvit.patterns.lengths import Length, Lengths, product, quotient
from jetvit.patterns.regions import GraphView
from jetvit.patterns.storage import storage
from jetvit.torch_private import OpOverload, schema

aten = torch.ops.aten

Digit = tuple[int | str, Length]
"""A number or the name of a coordinate, and how many values it can have: never 1."""
Index = tuple[Digit, ...]
"""() is the one entry of an axis of size 1."""
Place = tuple[Index, ...]
Move = Callable[["Entries", Node, Place], tuple[Node, Place] | None]
MOVES: dict[Any, Move] = {}
TIME = "time"
"""A coordinate of memory that is written to in place: it holds other values at another time."""
_MAX_DEPTH = 100  # elementwise steps, far more than a table is made in; a residual stream has no end


class Entries:
    """The values of entries, as numbers that are equal where the values provably are.

    Args:
        view: the graph.
        lengths: its sizes.
        written: the nodes whose memory the graph writes to in place.
    """

    def __init__(self, view: GraphView, lengths: Lengths, written: set[Node]):
        self.view, self.lengths, self.written = view, lengths, written
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._coordinates: list[frozenset[str]] = []
        self._known: dict[tuple[Node, Place], int] = {}

    def value(self, node: Node, place: Place, depth: int = 0) -> int:
        """The value of a tensor's entry at a place."""
        node = self.view.resolve(node)
        key = (node, place)
        if key not in self._known:
            self._known[key] = self._find(node, place, depth)
        return self._known[key]

    def coordinates(self, value: int) -> frozenset[str]:
        """The coordinates that a value may depend on."""
        return self._coordinates[value]

    def _find(self, node: Node, place: Place, depth: int) -> int:
        if storage(node, self.view) in self.written:
            return self._number((node, place), frozenset([TIME]))
        if depth < _MAX_DEPTH:
            if (rule := MOVES.get(node.target)) is not None and (moved := rule(self, node, place)) is not None:
                before, dtype = self.value(*moved, depth + 1), _dtype(node)
                same = _dtype(self.view.resolve(moved[0])) == dtype
                return before if same else self._number(("cast", dtype, before), self._coordinates[before])
            if _is_elementwise(node) and (found := self._elementwise(node, place, depth)) is not None:
                return found
        names = (digit for index in place for digit, _ in index if isinstance(digit, str))
        return self._number((node, place), frozenset(names))

    def _elementwise(self, node: Node, place: Place, depth: int) -> int | None:
        """The operator and the values of its operands, each broadcast to the place."""
        term: list[Any] = [node.target, _dtype(node)]
        coordinates: frozenset[str] = frozenset()
        for operand in (*node.args, *(each for pair in sorted(node.kwargs.items()) for each in pair)):
            if not isinstance(operand, Node) or not isinstance(operand.meta.get("val"), torch.Tensor):
                term.append(operand)  # a number, or the node of one
                continue
            if (inner := self.broadcast(operand, place)) is None:
                return None
            term.append(("value", number := self.value(operand, inner, depth + 1)))
            coordinates |= self._coordinates[number]
        return self._number(tuple(term), coordinates)

    def _number(self, term: tuple[Any, ...], coordinates: frozenset[str]) -> int:
        if term not in self._numbers:
            self._numbers[term] = len(self._coordinates)
            self._coordinates.append(coordinates)
        return self._numbers[term]

    def broadcast(self, operand: Node, place: Place) -> Place | None:
        """The place in an operand of what stands at a place of an elementwise or expanded result."""
        sizes = self.lengths.shape(operand)
        if len(sizes) > len(place):
            return None
        result: list[Index] = []
        for size, index in zip(sizes, place[len(place) - len(sizes) :], strict=True):
            if size != 1 and size != _size(index):
                return None
            result.append(() if size == 1 else index)
        return tuple(result)


def _dtype(node: Node) -> Any:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _is_elementwise(node: Node) -> bool:
    target = node.target
    if not isinstance(target, OpOverload) or schema(target).is_mutable:
        return False
    operands = (*node.args, *node.kwargs.values())
    hashable = all(isinstance(each, Node | int | float | str | torch.dtype | None) for each in operands)
    return hashable and torch.Tag.pointwise in target.tags and torch.Tag.nondeterministic_seeded not in target.tags


# Indices ----------------------------------------------------------------------------------------------------------


def _size(index: Index) -> Length:
    return product(count for _, count in index)


def deal(digits: Sequence[Digit], sizes: Sequence[Length]) -> Place | None:
    """Digits in row-major order, dealt out over axes of other sizes; None where an axis ends inside a coordinate."""
    rest = list(digits)
    place: list[Index] = []
    for size in sizes:
        index: list[Digit] = []
        missing = size
        while missing != 1:
            if not rest:
                return None
            digit, count = rest.pop(0)
            if (after := quotient(missing, count)) is not None:
                index.append((digit, count))
                missing = after
                continue
            inner = quotient(count, missing)
            if not isinstance(digit, int) or not isinstance(inner, int):
                return None
            index.append((digit // inner, missing))
            rest.insert(0, (digit % inner, inner))
            missing = 1
        place.append(tuple(index))
    return None if rest else tuple(place)


def _within(index: Index, size: Length) -> Index | None:
    """The index inside of one repetition of an axis of `size`; None where a digit counts both and is no number."""
    for cut in range(len(index) + 1):
        if _size(index[cut:]) == size:
            return index[cut:]
    for cut, (digit, count) in enumerate(index):
        unit = _size(index[cut + 1 :])
        if isinstance(digit, int) and isinstance(count, int) and isinstance(unit, int) and isinstance(size, int):
            inside, rest = divmod(size, unit)
            if rest == 0 and inside > 1 and count % inside == 0:
                return ((digit % inside, inside), *index[cut + 1 :])
    return None


def shift(index: Index, start: Length, size: Length) -> Index | None:
    """The index plus `start`, in an axis of `size`; None where digits cannot say it."""
    if start == 0 and size == _size(index):
        return index
    number, rest = _lead(index)
    unit = _size(rest)
    if not (isinstance(unit, int) and isinstance(start, int) and isinstance(size, int)):
        return None
    position = number * unit + start
    if position < 0 or position + unit > size or position % unit or size % unit:
        return None
    return rest if size == unit else ((position // unit, size // unit), *rest)


def _lead(index: Index) -> tuple[int, Index]:
    """The number that the first digits make, up to the first coordinate, and the digits from there."""
    number = 0
    for position, (digit, count) in enumerate(index):
        if not isinstance(digit, int) or not isinstance(count, int):
            return number, index[position:]
        number = number * count + digit
    return number, ()


def _replaced(place: Place, dim: int, index: Index | None) -> Place | None:
    return None if index is None else (*place[:dim], index, *place[dim + 1 :])


# Moves: operators whose entries are copies of entries of an argument -----------------------------------------------


def move(*targets: Any) -> Callable[[Move], Move]:
    """Enter a function into the table for these operators."""

    def enter(function: Move) -> Move:
        MOVES.update(dict.fromkeys(targets, function))
        return function

    return enter


@move(*CASTS, *COPIES, aten.to.device, aten.to.other, aten.lift_fresh_copy.default)
def in_place(entries: Entries, node: Node, place: Place) -> tuple[Node, Place]:
    """The same place of the argument."""
    return node.args[0], place


@move(*ROW_MAJOR)
def view(entries: Entries, node: Node, place: Place) -> tuple[Node, Place] | None:
    """Row-major order stays."""
    before = deal([digit for index in place for digit in index], entries.lengths.shape(node.args[0]))
    return None if before is None else (node.args[0], before)


@move(*PERMUTES)
def permute(entries: Entries, node: Node, place: Place) -> tuple[Node, Place]:
    """Axes in another order."""
    before: list[Index] = [()] * len(place)
    for index, dim in zip(place, permutation(node), strict=True):
        before[dim] = index
    return node.args[0], tuple(before)


@move(aten.expand.default, aten.expand_as.default)
def expand(entries: Entries, node: Node, place: Place) -> tuple[Node, Place] | None:
    """Axes of size 1 are read again and again."""
    before = entries.broadcast(node.args[0], place)
    return None if before is None else (node.args[0], before)


@move(aten.repeat.default, aten.tile.default)
def repeat(entries: Entries, node: Node, place: Place) -> tuple[Node, Place] | None:
    """Whole axes are read again and again: the last digits of an index count inside of one."""
    sizes = entries.lengths.shape(node.args[0])
    before: list[Index] = []
    for size, index in zip(sizes, place[len(place) - len(sizes) :], strict=True):
        inner = _within(index, size)
        if inner is None:
            return None
        before.append(inner)
    return node.args[0], tuple(before)


@move(aten.select.int)
def select(entries: Entries, node: Node, place: Place) -> tuple[Node, Place] | None:
    """One entry of an axis."""
    sizes = entries.lengths.shape(node.args[0])
    dim, number = node.args[1] % len(sizes), node.args[2]
    if not isinstance(number, int) or (number < 0 and not isinstance(sizes[dim], int)):
        return None
    index: Index = () if sizes[dim] == 1 else ((number if number >= 0 else number + sizes[dim], sizes[dim]),)
    return node.args[0], (*place[:dim], index, *place[dim:])


@move(aten.slice.Tensor)
def slice_(entries: Entries, node: Node, place: Place) -> tuple[Node, Place] | None:
    """A range of an axis."""
    sizes = entries.lengths.shape(node.args[0])
    dim = argument(node, 1, "dim", 0) % len(sizes)
    start = argument(node, 2, "start") or 0
    if argument(node, 4, "step", 1) != 1 or not isinstance(start, int):
        return None
    if start < 0:
        start = sizes[dim] + start
    if entries.lengths.shape(node)[dim] == sizes[dim]:
        start = 0
    before = _replaced(place, dim, shift(place[dim], start, sizes[dim]))
    return None if before is None else (node.args[0], before)


@move(operator.getitem)
def getitem(entries: Entries, node: Node, place: Place) -> tuple[Node, Place] | None:
    """One tensor of several."""
    source, number = entries.view.resolve(node.args[0]), node.args[1]
    if source.target in (aten.meshgrid.indexing, aten.meshgrid.default):
        return _of_meshgrid(entries, source, number, place)
    if source.target is aten.unbind.int:
        size = len(source.meta["val"])
        dim = argument(source, 1, "dim", 0) % (len(place) + 1)
        index: Index = () if size == 1 else ((number, size),)
        return source.args[0], (*place[:dim], index, *place[dim:])
    if source.target in SPLITS:
        dim = argument(source, 2, "dim", 0) % len(place)
        start: Length = 0
        for part in source.meta["val"][:number]:
            start = start + entries.lengths.of(part.shape[dim])
        whole = entries.lengths.shape(source.args[0])[dim]
        before = _replaced(place, dim, shift(place[dim], start, whole))
        return None if before is None else (source.args[0], before)
    return None


def _of_meshgrid(entries: Entries, source: Node, number: int, place: Place) -> tuple[Node, Place] | None:
    """Each of the grids varies along one axis; with indexing "xy" the first two change places."""
    lines = source.args[0]
    swapped = argument(source, 1, "indexing", "ij") == "xy" and number < 2 <= len(lines)
    line = lines[number]
    along = place[1 - number if swapped else number]
    return line, (along,) if len(entries.lengths.shape(line)) == 1 else ()


@move(aten.stack.default)
def stack(entries: Entries, node: Node, place: Place) -> tuple[Node, Place] | None:
    """The entry's place on the new axis says which tensor it comes from."""
    dim = argument(node, 1, "dim", 0) % len(place)
    number, rest = _lead(place[dim])
    return None if rest else (node.args[0][number], (*place[:dim], *place[dim + 1 :]))


@move(aten.cat.default, aten.concat.default, aten.concatenate.default)
def cat(entries: Entries, node: Node, place: Place) -> tuple[Node, Place] | None:
    """The entry's place along the axis says which part it comes from."""
    dim = argument(node, 1, "dim", 0) % len(place)
    start = 0
    for part in node.args[0]:
        sizes = entries.lengths.shape(part)
        size = sizes[dim] if len(sizes) == len(place) else None
        if not isinstance(size, int):
            return None
        if (before := _replaced(place, dim, shift(place[dim], -start, size))) is not None:
            return part, before
        start += size
    return None
