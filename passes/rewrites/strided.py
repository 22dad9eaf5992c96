"""Lazy strided view of a tensor: the entries that it takes and their order, before a node is made for it.

A chain of views, selections, permutations and copies says which entries of a tensor are read. `Strided` follows such a
chain on the axes alone. Permutations and copies only change the order in which axes stand, so they make no call until
`finished`, and none at all where the chain ends in the order in which it began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.axes import Atom, Axes, Axis
from jetvit.patterns.calls import shape
from jetvit.patterns.rules import RULES, AxisReader
from jetvit.patterns.sizes import Size, same, same_sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class Call:
    """An operator on the tensor that the last call made.

    Args:
        target: the operator.
        args: its arguments after the tensor; sizes may be symbolic.
        kwargs: its keyword arguments.
        moves: 1 if it permutes or copies.
        row_wise: for an operator that computes, the node that it takes the place of, and the view that its result is.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    moves: int = 0
    row_wise: tuple[Node, Strided] | None = None


@dataclass(frozen=True, eq=False)
class Strided:
    """A tensor, calls on it, and a view of their result.

    `value` is that result on fake tensors and `dims` what each of its axes is made of; `axes` are the axes of the view,
    made of the same atoms in another order, merged or split.
    """

    node: Node
    value: torch.Tensor
    dims: Axes
    axes: Axes
    calls: tuple[Call, ...] = ()

    @classmethod
    def of(cls, node: Node) -> Strided:
        """A tensor as it is."""
        dims = ax.fresh_axes(shape(node), "input")
        return cls(node, node.meta["val"], dims, dims)

    @property
    def moves(self) -> int:
        """The number of permutations and copies that the calls make."""
        return sum(call.moves for call in self.calls)

    def is_tensor(self, node: Node) -> bool:
        """True if the view is that tensor itself, with nothing done to it."""
        return self.node is node and not self.calls and self.dims == self.axes

    # What a chain does. Each gives None where the axes cannot be told. -----------------------------------------------

    def rearranged(self, node: Node) -> Strided | None:
        """Apply a node that permutes, merges or splits axes."""
        axes = RULES[node.target](_OneTensor(self.axes), node)
        assert isinstance(axes, tuple)
        if any(atom.kind == "unknown" for axis in axes for atom in axis):
            return None
        return replace(self, axes=axes)

    def selected(self, dim: int, index: int) -> Strided | None:
        """One entry along an axis."""
        if not self.axes[dim]:
            return replace(self, axes=_without(self.axes, dim))
        whole = self._with_own_dim(dim)
        if whole is None:
            return None
        place = whole.dims.index(whole.axes[dim])
        dims, axes = _without(whole.dims, place), _without(whole.axes, dim)
        return replace(whole._called(aten.select.int, place, index), dims=dims, axes=axes)

    def sliced(self, dim: int, start: int, stop: int, step: int = 1) -> Strided | None:
        """A range along an axis."""
        whole = self._with_own_dim(dim)
        if whole is None:
            return None
        place = whole.dims.index(whole.axes[dim])
        cut = whole._called(aten.slice.Tensor, place, start, stop, *([step] if step != 1 else []))
        axis = ax.fresh(cut.value.shape[place], "input")
        dims, axes = _with(whole.dims, place, axis), _with(whole.axes, dim, axis)
        return replace(cut, dims=dims, axes=axes)

    def computed(self, node: Node) -> Strided | None:
        """Apply a node that computes each row of the last axis by itself."""
        if len(shape(node)) != len(self.axes):
            return None
        rows = self._split()._with_last_dim()
        if rows is None:
            return None
        axis = ax.fresh(shape(node)[-1], "input")
        value = rows.value.new_empty((*rows.value.shape[:-1], shape(node)[-1]))
        after = replace(rows, value=value, dims=_with(rows.dims, -1, axis), axes=_with(rows.axes, -1, axis), calls=())
        call = Call(node.target, node.args[1:], node.kwargs, row_wise=(node, after))
        return replace(after, calls=(*rows.calls, call))

    def finished(self, sizes: Sequence[Size]) -> Strided:
        """The view as a tensor of its own: views where they do, after at most one permutation."""
        ready = self._split()
        order = [ready.dims.index((atom,)) for axis in ready.axes for atom in axis]
        if order == sorted(order):
            return ready._viewed(sizes, ready.axes)
        ones = [dim for dim, axis in enumerate(ready.dims) if not axis]
        if len(ones) == sum(not axis for axis in ready.axes) and all(len(axis) <= 1 for axis in ready.axes):
            rest = iter(ones)
            order = [ready.dims.index(axis) if axis else next(rest) for axis in ready.axes]
        elif ones:
            dims = tuple(axis for axis in ready.dims if axis)
            ready = ready._viewed([ax.axis_size(axis) for axis in dims], dims)
            order = [ready.dims.index((atom,)) for axis in ready.axes for atom in axis]
        turned = ready._called(aten.permute.default, order, moves=1)
        return replace(turned, dims=tuple(ready.dims[dim] for dim in order))._viewed(sizes, ready.axes)

    # ------------------------------------------------------------------------------------------------------------------

    def _with_own_dim(self, dim: int) -> Strided | None:
        """The same where an axis of the view is one axis of the tensor."""
        ready = self._split()
        return ready if len(ready.axes[dim]) == 1 else None

    def _with_last_dim(self) -> Strided | None:
        """The same where the last axis of the view is the last one of the tensor."""
        last = self.axes[-1]
        if not last or self.dims[-len(last) :] != tuple((atom,) for atom in last):
            return self if not last and not self.dims[-1] else None
        axis = ax.fresh(ax.axis_size(last), "input")
        dims = (*self.dims[: -len(last)], axis)
        sizes = (*self.value.shape[: -len(last)], ax.axis_size(last))
        return replace(self._viewed(sizes, dims), axes=_with(self.axes, -1, axis))

    def _split(self) -> Strided:
        """The same with an axis of the tensor for each atom of the view."""
        atoms = [atom for axis in self.axes for atom in axis]
        pieces = [_pieces(axis, atoms) for axis in self.dims]
        if all(len(parts) == len(axis) for parts, axis in zip(pieces, self.dims, strict=True)):
            return self
        # New atoms: pieces that remember their whole would be taken for it when they are merged.
        new = {atom: Atom(atom.size, "input") for parts in pieces for atom in parts}
        dims: list[Axis] = []
        for parts in pieces:
            dims += [(new[atom],) for atom in parts] if parts else [()]
        axes = tuple(tuple(new[atom] for atom in axis) for axis in self.axes)
        return replace(self._viewed([ax.axis_size(axis) for axis in dims], tuple(dims)), axes=axes)

    def _viewed(self, sizes: Sequence[Size], dims: Axes) -> Strided:
        """The tensor in another shape, by the call that names the fewest sizes."""
        before = self.value.shape
        if same_sizes(before, sizes):
            return replace(self, dims=dims)
        try:
            value, moves = self.value.view(sizes), 0
        except (RuntimeError, ValueError):  # no strides give this shape
            value, moves = self.value.reshape(sizes), 1
        first = sum(1 for _ in takewhile(bool, map(same, before, sizes)))
        first = max(0, min(first, len(before) - 1, len(sizes) - 1))
        last = sum(1 for _ in takewhile(bool, map(same, before[:first:-1], sizes[:first:-1])))
        old, new = before[first : len(before) - last], sizes[first : len(sizes) - last]
        if len(old) == 1 and new:
            unknown = [size for size in new if not isinstance(size, int)]
            new = [-1 if len(unknown) == 1 and size is unknown[0] else size for size in new]
            call = Call(aten.unflatten.int, (first, new), {}, moves)
        elif len(new) == 1 and old:
            call = Call(aten.flatten.using_ints, (first, first + len(old) - 1), {}, moves)
        else:
            call = Call(aten.reshape.default, (list(sizes),), {}, moves)
        return replace(self, value=value, dims=dims, calls=(*self.calls, call))

    def _called(self, target: Any, *args: Any, moves: int = 0) -> Strided:
        return replace(self, value=target(self.value, *args), calls=(*self.calls, Call(target, args, {}, moves)))


class _OneTensor(AxisReader):
    """The axes of a single tensor, for the rules of the layout walk."""

    def __init__(self, axes: Axes):
        super().__init__()
        self._axes = axes

    def of(self, node: Any) -> Axes:
        return self._axes


def _pieces(axis: Axis, atoms: Sequence[Atom]) -> list[Atom]:
    """The atoms that an axis of one atom was split into, in row-major order; the atom itself if it was not."""
    paths = {atom: _path(atom, axis[0]) for atom in atoms} if axis else {}
    found = [(path, atom) for atom, path in paths.items() if path is not None]
    return [atom for _, atom in sorted(found, key=lambda each: each[0])]


def _path(atom: Atom, whole: Atom) -> tuple[int, ...] | None:
    """The piece numbers that lead from an atom to a piece of it; None if it is no piece of it."""
    if atom is whole:
        return ()
    above = _path(atom.pieces[0], whole) if atom.pieces else None
    return (*above, atom.pieces[1]) if above is not None and atom.pieces else None


def _with(axes: Axes, dim: int, axis: Axis) -> Axes:
    dim %= len(axes)
    return (*axes[:dim], axis, *axes[dim + 1 :])


def _without(axes: Axes, dim: int) -> Axes:
    dim %= len(axes)
    return (*axes[:dim], *axes[dim + 1 :])
