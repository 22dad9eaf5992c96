"""Prove from the graph that the tables of a rotary embedding are axial, as the operators of jetvit want them.

A table [token, head_dim] is axial where the tokens are a grid, the second half of head_dim repeats the first, and of a
half the first part varies with the row of a token alone and the second with its column alone. HF DINOv3 and timm's
DINOv3 compute such tables from two `arange` and the inverse frequencies.
"""

from __future__ import annotations

from torch.fx import Node

from jetvit.patterns.entries import Entries, Index, Place
from jetvit.patterns.lengths import Length, Lengths, product
from jetvit.patterns.regions import GraphView
from jetvit.patterns.sizes import Size

_CHANNEL, _ROW, _COLUMN = "channel", "row", "column"


class AxialTables:
    """The proof, given once for each table of a graph.

    Args:
        view: the graph.
        lengths: its sizes.
        written: the nodes whose memory the graph writes to in place.
    """

    def __init__(self, view: GraphView, lengths: Lengths, written: set[Node]):
        self._lengths = lengths
        self._entries = Entries(view, lengths, written)
        self._known: dict[tuple[Node, int, tuple[Length, Length]], bool] = {}

    def holds(self, table: Node, token: int, grid: tuple[Size, Size]) -> bool:
        """True if a table is axial for a grid (rows, columns) and the same along all its other axes.

        Args:
            table: […, token, …, head_dim], for example [head, token, head_dim] or [token, 1, head_dim].
            token: the axis of tokens, counted from the last one, which is −1.
            grid: the grid that the tokens are, row by row.
        """
        rows, columns = (self._lengths.of(size) for size in grid)
        key = (table, token, (rows, columns))
        if key not in self._known:
            self._known[key] = self._prove(*key)
        return self._known[key]

    def _prove(self, table: Node, token: int, grid: tuple[Length, Length]) -> bool:
        sizes = self._lengths.shape(table)
        if len(sizes) < -token or sizes[token] != product(grid):
            return False
        if not isinstance(sizes[-1], int) or sizes[-1] % 4 or not sizes[-1]:
            return False
        place = [_index((f"axis {dim}", size)) for dim, size in enumerate(sizes)]
        place[token] = _index((_ROW, grid[0]), (_COLUMN, grid[1]))
        for part, along in enumerate((_ROW, _COLUMN)):
            first, second = (self._value(table, tuple(place), half, part, sizes[-1]) for half in range(2))
            if first != second or not self._entries.coordinates(first) <= {along, _CHANNEL}:
                return False
        return True

    def _value(self, table: Node, place: Place, half: int, part: int, head_dim: int) -> int:
        """The entry at a place, in a quarter of head_dim."""
        channel = _index((half, 2), (part, 2), (_CHANNEL, head_dim // 4))
        return self._entries.value(table, (*place[:-1], channel))


def _index(*digits: tuple[int | str, Length]) -> Index:
    return tuple(digit for digit in digits if digit[1] != 1)
