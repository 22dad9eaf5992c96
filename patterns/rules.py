"""The table of rules that the layout walk reads operators by: from the axes of the arguments to those of the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from jetvit.patterns import axes as ax
from jetvit.patterns.axes import Atom, Axes, Axis
from jetvit.patterns.sizes import Size

Value = Axes | list[Any] | None
Rule = Callable[["AxisReader", Node], Value]
RULES: dict[Any, Rule] = {}


class AxisReader:
    """The axes that a rule reads.

    Attributes:
        axes: node → axes of its tensor (a list of axes where it returns several tensors).
    """

    def __init__(self) -> None:
        self.axes: dict[Node, Value] = {}
        self._chosen: dict[tuple[Axis, Any], Atom] = {}

    def of(self, node: Any) -> Axes:
        """The axes of a tensor argument; a number has none."""
        value = self.axes.get(node) if isinstance(node, Node) else ()
        return value if isinstance(value, tuple) else ()

    def entry_of(self, axis: Axis, index: Any) -> Axis:
        """The axis that is left when one entry is taken: an atom of size 1 that tells one entry from another.

        Nothing is left of features, which hold q, k and v side by side; two images of a batch or two frames are two
        sequences, and attention from one to the other is no self-attention.
        """
        if ax.rank_of(axis) < 3 and not any(atom.kind == "unknown" for atom in axis):
            return ()
        return (self._chosen.setdefault((axis, index), Atom(1, "input", "one entry of an axis")),)


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Enter a function into the table for these operators."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return enter


def dims(index: Any, rank: int) -> list[int]:
    """Dimension numbers counted from the front."""
    return [i % rank for i in (index if isinstance(index, list | tuple) else [index])] if rank else []


def renewed(axis: Axis, size: Size, origin: str) -> Axis:
    kind = axis[0].kind if len(axis) == 1 and axis[0].segments is None else "unknown"
    return ax.fresh(size, kind, origin, axis[0].entry if kind == "input" else None)


def marked(axes: Axes, marker: Axis) -> Axes:
    """The first axis, usually the batch, remembers which entry of a lost axis the tensor was taken from."""
    return (marker + axes[0], *axes[1:]) if axes and marker else axes
