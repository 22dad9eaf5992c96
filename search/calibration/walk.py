"""A program on many batches at once, from one node to the next: each layer sees all images before the next one does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jetvit.search.calibration.execution import Batch, Execution, Values

LIMIT_BYTES = 2 << 30
"""The hidden states of all batches that are held in memory; larger ones are kept in files."""


class Walk:
    """The values of an execution on each batch, as far as it was run.

    Args:
        execution: the program.
        batches: what it is called with.
        folder: for values that are too large to be held.
        limit_bytes: how large they are then, all together.
    """

    def __init__(self, execution: Execution, batches: Sequence[Batch], folder: Path, limit_bytes: int = LIMIT_BYTES):
        self.execution, self._folder, self._limit = execution, folder, limit_bytes
        self._positions = [0] * len(batches)
        self._values: list[Values | Path] = [execution.start(batch) for batch in batches]

    def at(self, index: int, until: str) -> Values:
        """The values of a batch just before a node; the batch is run on to there."""
        kept = self._values[index]
        values = torch.load(kept, weights_only=True) if isinstance(kept, Path) else kept
        if self._positions[index] < self.execution.position[until]:
            self._positions[index] = self.execution.advance(values, self._positions[index], until)
            self._keep(index, values)
        return dict(values)

    def value(self, index: int, name: str, until: str) -> Any:
        """The value of a node as it is just before `until`, or will be if it comes later."""
        values = self.at(index, until)
        return values[name] if name in values else self.execution.evaluate(name, values, self._positions[index])

    def _keep(self, index: int, values: Values) -> None:
        size = sum(value.nbytes for value in values.values() if isinstance(value, Tensor))
        if size * len(self._values) <= self._limit:
            self._values[index] = values
            return
        path = self._folder / f"{id(self)}-{index}.pt"
        torch.save(values, path)
        self._values[index] = path
