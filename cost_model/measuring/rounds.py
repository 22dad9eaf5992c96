"""Timing calls side by side: in rounds, each of which takes a sample of every call, in a new order.

A noisy moment of the machine then hits all alike, and a ratio within a round does not see it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

MIN_ROUNDS = 5  # enough for quartiles
_SAMPLE_S = 0.02  # A sample is the mean over as many calls as fit in here: long enough for the clock.
_RESAMPLES = 2000

Run = Callable[[], object]
Sampler = Callable[[], float]


def time_ms(run: Run, calls: int, device: torch.device) -> float:
    """The mean time of a call on `device`, in milliseconds, of `calls` in a row. Raises what `run` raises."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        stream = torch.cuda.current_stream(device)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(stream)
        for _ in range(calls):
            run()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end) / calls
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return 1e3 * (time.perf_counter() - began) / calls


def sampler(run: Run, device: torch.device, *, warm_up: int = 1) -> Sampler:
    """Return what takes a sample of `run` on `device`: the mean time of as many calls as fit in 20 ms, in milliseconds.

    Calls `run` `warm_up` times, then once to see how many that are. Raises what `run` raises.
    """
    for _ in range(warm_up):
        run()
    calls = max(1, round(1e3 * _SAMPLE_S / max(time_ms(run, 1, device), 1e-3)))
    return partial(time_ms, run, calls, device)


def in_rounds(
    samplers: Sequence[Sampler],
    rounds: int,
    *,
    seed: int = 0,
    time_limit_s: float | None = None,
    progress: Callable[[int, int], None] = lambda done, rounds: None,
) -> list[list[float]]:
    """The samples of each sampler, in milliseconds; the k-th of all are of one round.

    Args:
        samplers: each takes one sample.
        rounds: how many samples each takes.
        seed: of the order within rounds.
        time_limit_s: begin no round after so many seconds, but for the first `MIN_ROUNDS`.
        progress: called after each round with the rounds done, and their number.
    """
    samples_ms: list[list[float]] = [[] for _ in samplers]
    order = list(range(len(samplers)))
    shuffle = random.Random(seed).shuffle
    start = time.perf_counter()
    for done in range(rounds):
        if time_limit_s is not None and done >= MIN_ROUNDS and time.perf_counter() - start > time_limit_s:
            break
        shuffle(order)
        for index in order:
            samples_ms[index].append(samplers[index]())
        progress(done + 1, rounds)
    return samples_ms


def ratio(full_ms: Sequence[float], ours_ms: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """The median over rounds of full / ours within the round, and its 95 % interval over rounds drawn with replacement.

    Within a round, for a machine that is busy for a while slows down both. seed: of the drawing.
    """
    ratios = np.array(full_ms) / np.array(ours_ms)
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)
