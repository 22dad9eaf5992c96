"""Define the parts of a campaign of measurements: steps, their expected cost, and the folder that holds their rows.

A step runs in one go and in one process: it is skipped when its rows are there, killed when it takes too long, and
tried again. `benchmarks.gpu.steps` puts the steps of all sections in order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import jetvit.kernels
import jetvit.passes
import jetvit.patterns
from benchmarks.gpu.archive import CACHES
from benchmarks.kernels.rows import code_of
from benchmarks.results import environment
from jetvit.cost_model.measuring.measurement import device_name

_SHORTEST_SLICE_S = 30.0


class TimeOver(Exception):
    """The time is over before a step that cannot tell from its files was done: the next run resumes it."""


def time_slice_s(left_s: float, most_s: float) -> float:
    """Return the seconds of a step that could go on for long: half of what is left, at most so many."""
    return min(left_s, max(_SHORTEST_SLICE_S, min(most_s, left_s / 2)))


class Skipped(Exception):
    """A step cannot run on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Campaign:
    """The device that a campaign measures, and the folder of its results.

    dry: small shapes on a CPU, to try the programs. known: the columns that all rows of this run share: device, torch,
    cuda, triton, jetvit, threads, code, dry, run, command.
    """

    folder: Path
    device: torch.device
    dry: bool
    known: Mapping[str, Any]

    def path(self, name: str) -> Path:
        """Return the file of that name; dry rows never go where real ones are."""
        stem, dot, suffix = name.partition(".")
        return self.folder / f"{stem}{'-dry' if self.dry else ''}{dot}{suffix}"

    @property
    def caches(self) -> Path:
        """Return the folder of what only this machine can use."""
        return self.folder / CACHES

    @property
    def processes(self) -> int:
        """Return how many processes a parallel step may use: all cores but two, which serve the campaign itself."""
        return 2 if self.dry else max(2, (os.cpu_count() or 2) - 2)


@dataclass(frozen=True)
class Cost:
    """The expected seconds of a step.

    cold_s: with empty caches. warm_s: after the step that fills the caches (`Step.warmed_by`) has run on this machine.
    basis: where the two numbers come from. dry_s: small shapes on a CPU of two cores.
    """

    cold_s: float
    warm_s: float
    basis: str
    dry_s: float = 20


@dataclass(frozen=True)
class Step:
    """One part of a campaign.

    name: unique in the campaign. value: steps with a smaller one run first. cost: a step does not start when less time
    is left. limit_s: a step that takes longer is killed. is_done: whether nothing is left to measure, from the files
    alone and without the device. run: measures what is left, writes each row as soon as it is known, and starts nothing
    after so many seconds; raises TimeOver if something is left and `is_done` cannot tell, Skipped if this machine lacks
    something. warmed_by: the step that fills the caches for this one. fills_caches: the step has no rows; what it
    leaves is of use on this machine alone.
    """

    name: str
    value: float
    cost: Cost
    limit_s: float
    is_done: Callable[[Campaign], bool]
    run: Callable[[Campaign, float], None]
    warmed_by: str = ""
    fills_caches: bool = False


def campaign_of(out: Path, dry: bool, command: str = "") -> Campaign:
    """Return the campaign of this process. dry: on the CPU. command: what the user has started, if not this process."""
    known = environment()
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    device = torch.device("cpu" if dry or not torch.cuda.is_available() else "cuda")
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
