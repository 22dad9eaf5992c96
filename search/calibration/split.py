"""Which images of a calibration are fitted on, which choose, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jetvit.search.calibration.execution import Batch

LEAST_BATCHES = 8
"""With fewer there is nothing to leave out of a refit and still fit on."""


@dataclass(frozen=True)
class Split:
    """The batches that are fitted on, that choose a plan, and that only tell what it is worth."""

    fitted: list[Batch]
    selection: list[Batch]
    held_out: list[Batch]

    @classmethod
    def of(cls, batches: Sequence[Batch], refit: bool) -> Split:
        """Half, a quarter and a quarter, in their order: of a film, the held-out frames lie far from the fitted ones.

        Without a refit every second batch chooses, and the others are held out.
        """
        if not refit:
            return cls([], list(batches[0::2]), list(batches[1::2]))
        half, rest = len(batches) // 2, len(batches) - len(batches) // 2
        first_held_out = half + (rest + 1) // 2
        return cls(list(batches[:half]), list(batches[half:first_held_out]), list(batches[first_held_out:]))
