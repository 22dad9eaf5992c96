"""Tell whether a machine was quiet enough to time on, from what it does to the timings themselves.

A busy machine returns numbers as a quiet one does. Four signs tell them apart: threads of this process that wait for a
core, samples that lie far apart, a repeated measurement that differs from the first, and parts of a model that take
longer than the whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from jetvit.cost_model.measuring.timing import Latency, summary

Result = TypeVar("Result")

ATTEMPTS = 3
"""The number of times that an unsteady measurement is taken before the last is used."""

_MOST_WAITING = 0.1  # of the time that torch's threads have; quiet machines here stay below 0.02
_MOST_SPREAD = 0.5  # of the quartiles, to the median; single attentions of some 0.1 ms vary by 0.2 on quiet machines
_MOST_CHANGE = 1.5  # of one measurement to its repetition
_MOST_PARTS = 1.3  # of the attentions' latencies to the whole model's, which has all of them and more

_SCHEDULER = Path("/proc/self/task")


class CoreWait:
    """The time that threads of this process waited for a core since the object was made.

    Unlike the load average it has no memory of earlier work, and it counts no process that leaves this one alone.
    """

    def __init__(self) -> None:
        self._began_s, self._waited_s = time.perf_counter(), _waited_s()

    def doubts(self) -> Iterator[str]:
        """A reason to distrust what was timed meanwhile, if there is one."""
        load, cores = _load(), os.cpu_count() or 1
        where = "" if load is None else f" (load {load:.1f} on {cores} cores)"
        waited_s = _waited_s()
        if waited_s is None or self._waited_s is None:
            if load is not None and load > cores:
                yield f"other processes are running{where}"
            return
        span_s = max(time.perf_counter() - self._began_s, 1e-9)
        share = (waited_s - self._waited_s) / (span_s * torch.get_num_threads())
        if share > _MOST_WAITING:
            yield f"the process waited for a core {min(share, 1):.0%} of the time{where}"


def _waited_s() -> float | None:
    """Seconds that threads of this process were ready to run and did not; None where the kernel does not tell."""
    total = 0
    try:
        for thread in _SCHEDULER.iterdir():
            try:
                total += int((thread / "schedstat").read_text().split()[1])
            except FileNotFoundError:  # it has ended
                continue
    except (OSError, IndexError, ValueError):
        return None
    return total / 1e9


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return None


def spread_doubts(what: str, latency: Latency) -> Iterator[str]:
    """A reason to distrust samples that lie far apart."""
    if latency.q75_ms - latency.q25_ms > _MOST_SPREAD * latency.median_ms:
        quartiles = f"quartiles of {latency.q25_ms:.3g} and {latency.q75_ms:.3g} ms"
        yield f"{what} takes {latency.median_ms:.3g} ms with {quartiles}"


def change_doubts(what: str, before_ms: float, after_ms: float) -> Iterator[str]:
    """A reason to distrust a measurement that its repetition does not bear out."""
    if max(before_ms, after_ms) > _MOST_CHANGE * min(before_ms, after_ms):
        yield f"{what} took {before_ms:.3g} ms, and {after_ms:.3g} ms when it was timed again"


def sum_doubts(parts_ms: float, whole_ms: float) -> Iterator[str]:
    """A reason to distrust attentions that take longer than the model that they are parts of."""
    if parts_ms > _MOST_PARTS * whole_ms:
        yield f"the attentions take {parts_ms:.3g} ms together, and the whole model {whole_ms:.3g} ms"


def sample_doubts(samples_ms: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Reasons to distrust samples of several calls, by the name of each: their spread, and a change half-way."""
    for what, samples in samples_ms.items():
        yield from spread_doubts(what, summary(samples))
        half = len(samples) // 2
        if half:
            yield from change_doubts(what, summary(samples[:half]).median_ms, summary(samples[half:]).median_ms)


def steadily(measure: Callable[[], tuple[Result, list[str]]], attempts: int = ATTEMPTS) -> tuple[Result, list[str]]:
    """Measure until nothing speaks against the result, and return the last one with its doubts.

    measure: returns a result and the reasons to distrust it. What it took to wait for a core is added to these.
    """
    for attempt in range(attempts):
        wait = CoreWait()
        result, doubts = measure()
        doubts = [*wait.doubts(), *doubts]
        if not doubts or attempt == attempts - 1:
            break
    return result, doubts
