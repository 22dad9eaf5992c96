"""The pieces that a campaign of measurements is made of: steps, each with rows of its own, and where they are written.

A step is what is measured in one go and in one process: it can be skipped when its rows are there, killed when it
takes too long, and tried again. `benchmarks.h100` puts the steps of all sections in order and runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import jetvit.kernels
import jetvit.passes
import jetvit.patterns
from benchmarks.kernel_rows import code_of
from benchmarks.results import environment
from jetvit.search.calibration import device_name


class TimeOver(Exception):
    """The time is over before a step that cannot tell from its files was done: the next run goes on with it."""


@dataclass(frozen=True)
class Campaign:
    """Where a campaign measures and writes.

    folder: of the results. device: what is measured. dry: shrunk shapes on a CPU, to try the programs. known: the
    columns that all rows of this run share: device, torch, cuda, triton, jetvit, threads, code, dry, run, command.
    """

    folder: Path
    device: torch.device
    dry: bool
    known: Mapping[str, Any]

    def path(self, name: str) -> Path:
        """The file of that name; dry rows never go where real ones are."""
        stem, dot, suffix = name.partition(".")
        return self.folder / f"{stem}{'-dry' if self.dry else ''}{dot}{suffix}"


@dataclass(frozen=True)
class Step:
    """One part of a section.

    name: unique in the campaign. value: steps with a smaller one run first. limit_s: a step that takes longer is
    killed. is_done: whether nothing is left to measure, told from the files alone and without the device. run: measures
    what is left, writes each row as soon as it is known, and begins nothing after so many seconds; raises TimeOver if
    something is left and `is_done` cannot tell.
    """

    name: str
    value: int
    limit_s: float
    is_done: Callable[[Campaign], bool]
    run: Callable[[Campaign, float], None]


def campaign_of(out: Path, dry: bool, command: str = "") -> Campaign:
    """The campaign of this process. dry: on the CPU. command: what a user has started, if not this process."""
    known = environment()
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    device = torch.device("cpu" if dry else "cuda")
    shared = {
        "device": device_name(device),
        "torch": known["torch"],
        "cuda": torch.version.cuda or "none",
        "triton": triton,
        "jetvit": known["jetvit"],
        "threads": str(known["threads"]),
        "code": code_of(jetvit.kernels, jetvit.passes, jetvit.patterns),
        "dry": str(dry),
        "run": known["date"],
        "command": (command or known["command"]).replace(str(out), "DIR"),
    }
    return Campaign(out, device, dry, shared)
