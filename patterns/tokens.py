"""The known axes of a tensor with its token grid, in values that need no graph."""

from __future__ import annotations

from dataclasses import dataclass, field

from jetvit.patterns.sizes import Size


@dataclass(frozen=True)
class Tokens:
    """An axis of extra tokens, a grid in row-major order, and extra tokens again; `origin` is what made the grid."""

    before: Size
    grid: tuple[Size, Size]
    after: Size
    origin: str = field(default="", compare=False)

    def sizes(self) -> tuple[Size, ...]:
        """All numbers that it is made of."""
        return self.before, *self.grid, self.after


@dataclass(frozen=True)
class MapSide:
    """An axis of rows, or of columns, of a two-dimensional map; `kind` is "row" or "col"."""

    kind: str
    size: Size

    def sizes(self) -> tuple[Size, ...]:
        """All numbers that it is made of."""
        return (self.size,)


Known = tuple[Tokens | MapSide | None, ...]
"""The known part of each axis of a tensor."""
