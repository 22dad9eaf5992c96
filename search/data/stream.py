"""Batches of a split, without end: which images a step takes follows from the seed and its number alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from torch import Tensor

from jetvit.patterns.errors import InputError
from jetvit.search.data.processes import Processes
from jetvit.search.data.splits import Sample, Split, collate

Inputs = Callable[[Tensor], tuple[tuple[Any, ...], dict[str, Any]]]
"""From images [batch, 3, height, width] on the CPU to the (args, kwargs) that a model is called with."""


class Stream:
    """Every image once before any twice, each epoch in an order of its own.

    Args:
        split: the images.
        batch: images a step, over all processes; each process gets an equal part.
        seed: of the orders.
        flip: mirror every other image and its target, by a coin.
    Raises:
        InputError: the batch cannot be divided among the processes.
    """

    def __init__(
        self,
        split: Split,
        batch: int,
        seed: str,
        processes: Processes,
        *,
        flip: bool = False,
    ):
        if batch < 1 or batch % processes.count:
            raise InputError(f"a batch of {batch} cannot be divided among {processes.count} processes")
        self.split, self.batch, self.seed, self.flip = split, batch, seed, flip
        self._processes = processes
        self._epoch: tuple[int, list[int]] = -1, []

    def __call__(self, step: int) -> tuple[Tensor, Tensor | None]:
        """The images [batch, 3, height, width] of this process at a step, and their targets, if they have any."""
        part = self.batch // self._processes.count
        first = step * self.batch + self._processes.index * part
        samples = [self._sample(number) for number in range(first, first + part)]
        return collate(samples)

    def _sample(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self.split))
        if self._epoch[0] != epoch:
            order = list(range(len(self.split)))
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            self._epoch = epoch, order
        image, target = self.split[self._epoch[1][place]]
        if self.flip and random.Random(f"{self.seed} {number} flip").random() < 0.5:
            image = image.flip(-1)
            target = target.flip(-1) if target is not None else None
        return Sample(image, target)
