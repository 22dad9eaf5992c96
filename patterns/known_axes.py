"""The token grid of a tensor that one graph hands to another.

A model with code that Dynamo cannot follow becomes several graphs. The second one gets the tokens as a row of some
length: that they are the patches of an image, row by row, was to be seen in the first. So the first tells it, in words
that need no graph: `describe` reads them off the axes of a result, `axes_of` gives them to an input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.axes import Atom, Axes, Axis
from jetvit.patterns.calls import shape
from jetvit.patterns.captured import CapturedGraph
from jetvit.patterns.core import Refused
from jetvit.patterns.geometry import grid_axis, read_tokens
from jetvit.patterns.sizes import Size, same
from jetvit.patterns.tokens import Known, MapSide, Tokens


def describe(axes: Axes, node: Node) -> Known | None:
    """A description, for another graph, of a tensor with these axes; None if nothing is known."""
    known = tuple(_describe(axis, node) for axis in axes)
    return known if any(each is not None for each in known) else None


def _describe(axis: Axis, node: Node) -> Tokens | MapSide | None:
    if len(axis) == 1 and axis[0].kind in ("row", "col") and axis[0].segments is None and axis[0].cut is None:
        return MapSide(axis[0].kind, axis[0].size) if axis[0].pieces is None or axis[0].pieces[1] == 0 else None
    try:
        return read_tokens(axis, node)
    except Refused:
        return None


def evaluate(known: Known, number: Callable[[Size], int]) -> Known:
    """The same with all sizes as numbers."""

    def fixed(each: Tokens | MapSide | None) -> Tokens | MapSide | None:
        if isinstance(each, Tokens):
            return Tokens(number(each.before), (number(each.grid[0]), number(each.grid[1])), number(each.after))
        return None if each is None else MapSide(each.kind, number(each.size))

    return tuple(map(fixed, known))


def entries(graph: CapturedGraph) -> dict[Node, Axes]:
    """The axes of the inputs of a graph of which more is known than their shape."""
    return {node: axes_of(known, shape(node), node.name) for node, known in graph.known.items()}


def axes_of(known: Known, sizes: Sequence[Size], name: str) -> Axes:
    """The axes of an input of which so much is known; what does not fit its shape is left out."""
    return tuple(
        _axis(each, size, (name, dim)) or ax.fresh(size, "input", name, (name, dim))
        for dim, (each, size) in enumerate(zip(known, sizes, strict=True))
    )


def _axis(known: Tokens | MapSide | None, size: Size, entry: tuple[str, int]) -> Axis | None:
    if known is None:
        return None
    if isinstance(known, MapSide):
        return (Atom(size, known.kind, entry=entry),) if same(size, known.size) else None
    height, width = known.grid
    return grid_axis(known, entry) if same(size, known.before + height * width + known.after) else None
