"""A few calls under torch's profiler, taken apart into kernels and the time between them."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.breakdown.kinds import Kernel, Profile

_CALLS = 5
_APART_S = 0.003  # between two calls, so that no difference of clocks puts a kernel into the wrong one
_MARK = "breakdown: one call"

Call = Callable[[], object]


def profiled(ways: Mapping[str, Call], device: torch.device) -> dict[str, Profile]:
    """Profile a few calls of each way, all in one session; of each the call of the median wall time.

    A way whose kernels the profiler does not see is left out. Raises RuntimeError where that is all of them.
    """
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if gpu else [])
    # One session alone: in some releases CUPTI sees nothing of CUDA graphs in a second one.
    with profile(activities=activities) as profiler:
        for call in ways.values():
            for _ in range(_CALLS):
                time.sleep(_APART_S)
                with record_function(_MARK):
                    call()
                    synchronize(device)
    found = split(profiler.events(), gpu)
    middle = {}
    for number, way in enumerate(ways):
        here = [each for each in found[number * _CALLS : (number + 1) * _CALLS] if each is not None]
        if len(here) == _CALLS:
            middle[way] = sorted(here, key=lambda each: each.wall_ms)[_CALLS // 2]
        else:
            print(f"  the profiler sees no kernels of {way}", flush=True)
    if not middle:
        raise RuntimeError("the profiler saw no kernel: is CUPTI there, and free?")
    return middle


def split(events: Iterable[Any], on_gpu: bool) -> list[Profile | None]:
    """The calls of a profile: FunctionEvents of torch.profiler, with the marks around the calls among them.

    On a GPU the kernels, else the self times of the operators; None for a call without any.
    """
    everything = list(events)
    marks = sorted(
        (each.time_range.start, each.time_range.end)
        for each in everything
        if each.name == _MARK and each.device_type == DeviceType.CPU
    )
    borders = [start - 1e6 * _APART_S / 2 for start, _ in marks]
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    launched: list[list[Kernel]] = [[] for _ in marks]
    for each in everything:
        # Regions such as those of compiled graphs are also listed on the device, as long as all of their kernels.
        if each.device_type != wanted or each.is_user_annotation or each.name == _MARK:
            continue
        start, end = each.time_range.start, each.time_range.end
        us = end - start if on_gpu else each.self_cpu_time_total
        place = bisect.bisect_right(borders, start) - 1
        if us > 0 and place >= 0 and (on_gpu or start < marks[place][1]):
            launched[place].append(Kernel(each.name, start, us))
    profiles: list[Profile | None] = []
    for kernels, (start, end) in zip(launched, marks, strict=True):
        if not kernels:
            profiles.append(None)
            continue
        kernels.sort(key=lambda kernel: kernel.start)
        if on_gpu:
            wall = max(kernel.start + kernel.us for kernel in kernels) - kernels[0].start
            idle = _idle(kernels)
        else:
            wall = end - start
            idle = wall - sum(kernel.us for kernel in kernels)
        profiles.append(Profile(wall / 1e3, idle / 1e3, tuple(kernels)))
    return profiles


def _idle(kernels: Sequence[Kernel]) -> float:
    """µs between the kernels in which none runs; those of several streams may overlap."""
    idle, busy_until = 0.0, kernels[0].start
    for kernel in kernels:
        idle += max(0.0, kernel.start - busy_until)
        busy_until = max(busy_until, kernel.start + kernel.us)
    return idle


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
