"""The guards on open sizes that torch.export relies on while it captures, in the words of images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy

from jetvit.passes.graph.source_lines import running_line
from jetvit.torch_private import observed_guards

AXES = {0: "batch", 2: "height", 3: "width"}
"""The axes of images that are open, by their places."""


@dataclass(frozen=True)
class SizeGuard:
    """A condition on the sizes that torch.export relies on, the axis of each symbol, and the model line."""

    condition: sympy.Basic
    axes: dict[sympy.Symbol, str]
    line: str

    def fails(self, lengths: Mapping[str, int]) -> bool:
        """Report whether the condition is false for the lengths of the axes."""
        try:
            return self.condition.subs({symbol: lengths[axis] for symbol, axis in self.axes.items()}) == sympy.false
        except (TypeError, ValueError, AttributeError, ZeroDivisionError):
            return False

    def __str__(self) -> str:
        names = {symbol: sympy.Symbol(axis, integer=True, positive=True) for symbol, axis in self.axes.items()}
        relation = getattr(self.condition, "rel_op", None)
        if relation is None:
            return str(self.condition.xreplace(names))
        left, right = (each.xreplace(names) for each in self.condition.args)
        return f"{left} {relation} {right}"


@contextmanager
def noted_guards(guards: list[SizeGuard]) -> Iterator[None]:
    """Append the guards on axes of images that torch.export adds meanwhile."""

    def observe(guard: Any, sources: Mapping[str, str]) -> None:
        if not isinstance(guard, sympy.Basic) or not all(str(symbol) in sources for symbol in guard.free_symbols):
            return
        axes = {symbol: _axis(sources[str(symbol)]) for symbol in guard.free_symbols}
        if axes and all(axes.values()):
            guards.append(SizeGuard(guard, axes, running_line()))

    with observed_guards(observe):
        yield


def named_axes(text: str) -> str:
    """Write torch's "pixel_values.size()[2]" as "height" in an error message, and drop its advice."""
    text = re.sub(r"(L\[')?\w+('\])?\.size\(\)\[([023])\]", lambda match: AXES[int(match[3])], text)
    text = re.sub(
        r'Constraints violated \([^)]*\)! For more information, run with TORCH_LOGS="\+dynamic"\.\s*-\s*', "", text
    )
    text = re.sub(
        r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)",
        r"its code fixes the \1 to \2",
        text,
    )
    return text.partition(" If you're using mark_dynamic")[0]  # advice for those who call torch.export themselves


def _axis(source: str) -> str:
    """The axis of a symbol by its source in torch, such as "L['x'].size()[2]"; "" for another source."""
    match = re.search(r"\.size\(\)\[(\d+)\]$", source)
    return AXES.get(int(match[1]), "") if match else ""
