"""The processes that search together: one by default, or those that accelerate's launcher has started.

Every process sees an equal part of each batch, and gradients are averaged, so that the number of processes changes
nothing but the order of additions. All processes make the same decisions, because what they decide by is shared.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Row = TypeVar("Row")


class Processes:
    """This process alone.

    index, count: of this process, and how many there are.
    """

    index, count = 0, 1

    @property
    def first(self) -> bool:
        """Report whether this process is the one that writes files."""
        return self.index == 0

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over all processes into every tensor; all processes give tensors of the same shapes."""

    def gather(self, rows: Sequence[Row]) -> list[Row]:
        """The rows of all processes, those of the first one first."""
        return list(rows)


class Launched(Processes):
    """The processes that `accelerate launch` or `torchrun` started; they share a file system."""

    def __init__(self) -> None:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        # Left to itself it takes a machine without a GPU for one process.
        cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
        self._state = PartialState(cpu=cpu)
        self.index, self.count = self._state.process_index, self._state.num_processes
        # Threads of the group that are there when Python ends would now and then take the process down with them.
        atexit.register(self._state.destroy_process_group)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average as the base class says, in one message a dtype."""
        from accelerate.utils import reduce

        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for some in by_dtype.values():
            flat = torch.cat([each.flatten() for each in some])
            mean: Any = reduce(flat.to(self._state.device), "mean")  # NCCL takes nothing that is on the CPU
            for tensor, value in zip(some, mean.split([each.numel() for each in some]), strict=True):
                tensor.copy_(value.view_as(tensor))

    def gather(self, rows: Sequence[Row]) -> list[Row]:
        from accelerate.utils import gather_object

        return gather_object(list(rows))


def processes_here() -> Processes:
    """Return the processes that a launcher has started, if this is one of them; else this process alone."""
    return Launched() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Processes()
