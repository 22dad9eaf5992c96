"""The atoms that an axis of a tensor is made of: the vocabulary of the layout walk.

An axis is a row-major product of atoms; the empty product is an axis of size 1. Views merge and split axes, so two axes
that hold the same atoms in the same order are the same axis, however the graph got there. A concatenation along an axis
(CLS token, registers, patches) is one atom with segments; a slice is one atom that remembers what it was cut from, so
that split-and-concatenate, which rotary embeddings do, gives the original axis back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from jetvit.patterns.sizes import Size, expression, is_floor_of, is_one, quotient, same


@dataclass(frozen=True, eq=False)
class Atom:
    """An indivisible piece of an axis. Compared by identity: equal sizes do not make equal atoms.

    kind: "row" or "col" (of a two-dimensional map), "input" (an axis of a user's input), "feature" (made by a matrix
        product), "weight" (of a parameter or a constant) or "unknown" (made by an operator not known to the walk).
    origin: where it came from, in words.
    entry: of an axis of an input, the input's name and the number of the axis there.
    pieces: the atom and piece numbers that it was split from.
    cut: the axis and the bounds that it was sliced from.
    segments: the axes that were concatenated, with their sizes.
    """

    size: Size
    kind: str
    origin: str = ""
    entry: tuple[str, int] | None = None
    pieces: tuple[Atom, int] | None = None
    cut: tuple[Axis, Size, Size] | None = None
    segments: tuple[tuple[Axis, Size], ...] | None = None
    _splits: dict[object, tuple[Atom, Atom]] = field(default_factory=dict, repr=False)

    @property
    def root(self) -> Atom:
        """The atom that this one was split from, through every level."""
        return self.pieces[0].root if self.pieces else self

    @property
    def splittable(self) -> bool:
        """A concatenation cannot be cut by a view without losing which token is which; neither can a part of one."""
        return self.segments is None and (self.cut is None or all(atom.splittable for atom in self.cut[0]))

    def split(self, first: Size, second: Size) -> tuple[Atom, Atom]:
        """The two pieces of these sizes, the same ones each time: q, k and v may be cut each for itself.

        Both remember the whole, so that merging them gives it back.
        """
        key = expression(first), expression(second)
        if key not in self._splits:
            pieces = (
                Atom(first, self.kind, self.origin, self.entry, pieces=(self, 0)),
                Atom(second, self.kind, self.origin, self.entry, pieces=(self, 1)),
            )
            self._splits[key] = pieces
        return self._splits[key]


Axis = tuple[Atom, ...]
Axes = tuple[Axis, ...]


def axis_size(axis: Axis) -> Size:
    """The number of entries along an axis."""
    size: Size = 1
    for atom in axis:
        size = size * atom.size
    return size


def fresh(size: Size, kind: str, origin: str = "", entry: tuple[str, int] | None = None) -> Axis:
    """A new axis of one atom, or the empty product for size 1."""
    return () if is_one(size) else (Atom(size, kind, origin, entry),)


def fresh_axes(shape: Iterable[Size], kind: str, origin: str = "") -> Axes:
    """New axes for a whole shape."""
    return tuple(fresh(size, kind, origin) for size in shape)


def rejoin(axis: Axis) -> Axis:
    """Put pieces that stand side by side, complete and in order, back together."""
    atoms: list[Atom] = []
    for atom in axis:
        atoms.append(atom)
        while len(atoms) >= 2:
            first, second = atoms[-2].pieces, atoms[-1].pieces
            if not (first and second and first[0] is second[0] and first[1] == 0 and second[1] == 1):
                break
            sizes = (first[0].size, atoms[-2].size, atoms[-1].size)
            if all(isinstance(size, int) for size in sizes) and sizes[0] != sizes[1] * sizes[2]:
                break  # pieces of two different splits of the same atom
            atoms[-2:] = [first[0]]
    return tuple(atoms)


def rank_of(axis: Axis) -> int:
    """The rank of an axis by how much is known of it: a join of two axes keeps the one of the higher rank."""
    ranks = {"weight": 0, "unknown": 1, "feature": 2, "input": 3, "row": 4, "col": 4}

    def rank(atom: Atom) -> int:
        inner = [rank_of(part) for part, _ in atom.segments or ()] + ([rank_of(atom.cut[0])] if atom.cut else [])
        return max([ranks[atom.kind], *inner])

    return max((rank(atom) for atom in axis), default=-1)


def is_of_a_map(axis: Axis) -> bool:
    """True if an axis holds rows or columns of a two-dimensional map, or a part of them."""
    axis = uncut(axis)  # what was cut out of a concatenation may be the tokens beside the map
    if len(axis) == 1 and axis[0].segments is not None:
        return any(is_of_a_map(part) for part, _ in axis[0].segments)
    return rank_of(axis) == 4


def join(a: Axis, b: Axis) -> Axis:
    """The axis of an elementwise result: one of size 1, such as a slice of one token, is broadcast along the other."""
    ones = [is_one(axis_size(axis)) for axis in (a, b)]
    if ones[0] != ones[1]:
        return b if ones[0] else a
    return a if rank_of(a) >= rank_of(b) else b


def broadcast(operands: Sequence[Axes]) -> Axes:
    """The axes of an elementwise result, aligned from the right."""
    rank = max((len(axes) for axes in operands), default=0)
    result: list[Axis] = [()] * rank
    for axes in operands:
        for position, axis in enumerate(axes, start=rank - len(axes)):
            result[position] = join(result[position], axis)
    return tuple(result)


def reshape(axes: Axes, shape: Sequence[Size]) -> Axes:
    """The axes of a view: atoms are dealt out in row-major order and split where an axis ends inside one.

    An axis whose atoms cannot be told becomes unknown, with the reason as its origin, and so do those right of it.
    """
    atoms = [atom for axis in axes for atom in axis]
    result: list[Axis] = []
    floored = len(shape)  # the first axis of which is known that it holds no more than it is taken for

    def unknown_from(position: int, origin: str) -> Axes:
        first = min(position, floored)
        return (*result[:first], *fresh_axes(shape[first:], "unknown", origin))

    for position, size in enumerate(shape):
        taken: list[Atom] = []
        missing: Size = size
        while not is_one(missing):
            if not atoms:
                return unknown_from(position, "a reshape")
            atom = atoms.pop(0)
            if (rest := quotient(missing, atom.size)) is not None:
                taken.append(atom)
                missing = rest
                continue
            if (inside := whole_segments(atom)) is not None:
                atoms[:0] = inside
                continue
            inner = quotient(atom.size, missing)
            if inner is None and position + 1 < len(shape) and is_floor_of(missing, atom.size, shape[position + 1]):
                # size // p rows of p: no more than size, and as a reshape keeps the count, no less either, if all fits
                inner, floored = shape[position + 1], min(position, floored)
            if inner is None or not atom.splittable:
                what = "a reshape" if atom.splittable else "a reshape that cuts through the extra tokens"
                return unknown_from(position, what)
            piece, remainder = atom.split(missing, inner)
            taken.append(piece)
            atoms.insert(0, remainder)
            missing = 1
        result.append(rejoin(tuple(taken)))
    return tuple(result)


def flat_segments(axis: Axis) -> list[tuple[Axis, Size]]:
    """The segments of an axis: itself, where it is no concatenation."""
    if len(axis) == 1 and axis[0].segments is not None:
        return list(axis[0].segments)
    return [(axis, axis_size(axis))]


def concatenate(parts: Sequence[Axis]) -> Axis:
    """The axis of a concatenation. The parts of one axis, complete and in order, give that axis back."""
    parts = [axis for axis in parts if not same(axis_size(axis), 0)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    cuts = [axis[0].cut for axis in parts if len(axis) == 1]
    if len(cuts) == len(parts) and all(cut is not None for cut in cuts):
        whole = [cut for cut in cuts if cut is not None]
        base = whole[0][0]
        meet = all(left[0] == right[0] and same(left[2], right[1]) for left, right in pairwise(whole))
        if meet and same(whole[0][1], 0) and same(whole[-1][2], axis_size(base)):
            return base
    segments = tuple(segment for axis in parts for segment in flat_segments(uncut(axis)))
    kind = "feature" if all(rank_of(axis) == 2 for axis, _ in segments) else "unknown"
    size: Size = 0
    for _, part in segments:
        size = size + part
    return (Atom(size, kind, "a concatenation", segments=segments),)


def cut(axis: Axis, start: Size, stop: Size) -> Axis:
    """The axis of a slice with step 1. It keeps its atom even at size 1, so that its twin can be put back beside it."""
    if same(start, 0) and same(stop, axis_size(axis)):
        return axis
    kind = axis[0].kind if len(axis) == 1 and axis[0].segments is None else "unknown"
    return (Atom(stop - start, kind, "a slice", cut=(axis, start, stop)),)


def uncut(axis: Axis) -> Axis:
    """The segments of a slice of a concatenation, where it holds whole segments; else the axis itself."""
    inside = whole_segments(axis[0]) if len(axis) == 1 else None
    return axis if inside is None else inside


def alike(a: Axis, b: Axis) -> bool:
    """True if two axes are one, or the same slice of one."""
    a, b = uncut(a), uncut(b)
    if a == b:
        return True
    if not (len(a) == len(b) == 1 and a[0].cut is not None and b[0].cut is not None):
        return False
    (whole, *bounds), (other, *others) = a[0].cut, b[0].cut
    return whole == other and all(map(same, bounds, others))


def whole_segments(atom: Atom) -> Axis | None:
    """The segments of a slice of a concatenation whose bounds provably fall between segments; else None."""
    if atom.cut is None:
        return None
    axis, start, stop = atom.cut
    position: Size = 0
    chosen: list[tuple[Axis, Size]] = []
    begun = False
    for segment, size in flat_segments(axis):
        begun = begun or same(position, start)
        if begun:
            chosen.append((segment, size))
        position = position + size
        if begun and same(position, stop):
            if len(chosen) > 1:
                return (Atom(atom.size, "unknown", segments=tuple(chosen)),)
            inner = chosen[0][0]
            deeper = whole_segments(inner[0]) if len(inner) == 1 else None
            return inner if deeper is None else deeper
    return None
