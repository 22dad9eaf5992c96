"""The latency of one attention on the device at hand, on random data of its true shape."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from jetvit.cost_model.plans.choice import Choice
from jetvit.kernels import full_attention, window_attention

_BLOCK_S = 5e-3  # One sample on a CPU is the mean over as many runs as fit in here: long enough for the clock.
_WARM_UP_S = 25e-3
_LEAST_SAMPLES = 3  # of a call that is timed alone
_L2_BYTES = 256 << 20  # More than any GPU's L2 cache.
_GENERATOR_SQUEEZE = 4  # Channels to width of the kernel generator. Its cost is small, and so is this one's weight.

Sampler = Callable[[], list[float]]


@dataclass(frozen=True)
class AttentionShape:
    """The shape of one attention: q, k and v are [batch, tokens, num_heads, head_dim] of `dtype` on `device`.

    The tokens are `extra_before`, then grid height × grid width, then `extra_after`. `scale` multiplies q·kᵀ and is
    1 / sqrt(head_dim) where it is None.
    """

    batch: int
    num_heads: int
    head_dim: int
    grid: tuple[int, int]
    extra_before: int = 0
    extra_after: int = 0
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    scale: float | None = None

    @property
    def tokens(self) -> int:
        """All tokens of the sequence."""
        return self.extra_before + self.grid[0] * self.grid[1] + self.extra_after


@dataclass(frozen=True)
class Latency:
    """Median and quartiles over `reps` samples, in milliseconds a call."""

    median_ms: float
    q25_ms: float
    q75_ms: float
    reps: int


def time_choice(choice: Choice, shape: AttentionShape, *, time_limit_s: float = 1.0) -> Latency:
    """The latency of one choice; `measure_choices` compares several."""
    return measure_choices([choice], shape, time_limit_s=time_limit_s)[choice]


def measure_choices(
    choices: Sequence[Choice], shape: AttentionShape, *, rounds: int = 20, time_limit_s: float = 10.0
) -> dict[Choice, Latency]:
    """The latency of each choice at one shape, forward only, rotary embedding not included.

    Every round runs all choices in a new order, so that a noisy moment of the machine hits all alike. No block of runs
    is begun after `time_limit_s` seconds, but for the first round. A CPU is timed with `torch.utils.benchmark` at
    torch's present number of threads, with warm caches; a GPU with events and a cold L2 cache, as `do_bench` does.

    Raises what the operators raise for a shape or dtype that they do not take.
    """
    order = list(dict.fromkeys(choices))
    samples: dict[Choice, list[float]] = {choice: [] for choice in order}
    deadline = time.perf_counter() + time_limit_s
    shuffle = random.Random(0).shuffle
    with torch.inference_mode():
        q, k, v = _random_qkv(shape)
        make_sampler = _gpu_sampler if q.is_cuda else _cpu_sampler
        samplers = {choice: make_sampler(_attention(choice, shape, q, k, v), q.device) for choice in order}
        for turn in range(rounds):
            shuffle(order)
            for choice in order:
                if turn == 0 or time.perf_counter() < deadline:
                    samples[choice] += samplers[choice]()
    return {choice: summary(samples[choice]) for choice in dict.fromkeys(choices)}


def time_call(
    run: Callable[[], object], device: torch.device, *, rounds: int = 20, time_limit_s: float = 0.5
) -> Latency:
    """The latency of one call on `device`, taken as `measure_choices` takes it.

    There are `rounds` rounds, but none is begun after `time_limit_s` seconds where there are three samples already,
    enough for quartiles. Raises what `run` raises.
    """
    with torch.inference_mode():
        sample = (_gpu_sampler if device.type == "cuda" else _cpu_sampler)(run, device)
        deadline = time.perf_counter() + time_limit_s
        samples: list[float] = []
        for _ in range(rounds):
            if len(samples) < _LEAST_SAMPLES or time.perf_counter() < deadline:
                samples += sample()
    return summary(samples)


def summary(samples_ms: Sequence[float]) -> Latency:
    """Median and quartiles of samples in milliseconds a call."""
    q25_ms, median_ms, q75_ms = (float(x) for x in np.percentile(samples_ms, [25, 50, 75]))
    return Latency(median_ms, q25_ms, q75_ms, len(samples_ms))


def _random_qkv(shape: AttentionShape) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(shape.device).manual_seed(0)
    size = (3, shape.batch, shape.tokens, shape.num_heads, shape.head_dim)
    q, k, v = torch.randn(size, generator=generator, dtype=shape.dtype, device=shape.device)
    return q, k, v


def _attention(choice: Choice, shape: AttentionShape, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """The call to time."""
    scale = shape.head_dim**-0.5 if shape.scale is None else shape.scale
    absent = q.new_empty(0)
    place = (*shape.grid, shape.extra_before)
    if choice.kind == "full":
        if q.is_cuda:  # what the exact rewrites put there
            return partial(full_attention, q, k, v, absent, absent, *place, scale)
        # [batch, head, token, dim] views of [batch, token, head, dim], as models have them.
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return partial(F.scaled_dot_product_attention, q, k, v, scale=scale)
    if choice.window is not None:
        return partial(window_attention, q, k, v, absent, absent, *place, *choice.window, scale)
    weights = _generator_weights(shape, choice.conv_size or 0, absent)
    arguments = (q, k, v, absent, absent, *weights, *place, choice.conv_size, choice.eps, choice.feature_map)
    return partial(torch.ops.jetvit.linear_attention.default, *arguments)


def _generator_weights(shape: AttentionShape, conv_size: int, absent: Tensor) -> list[Tensor]:
    """w1, b1, w2, b2 of the kernel generator, absent without a convolution."""
    if conv_size == 0:
        return [absent] * 4
    return [absent.new_zeros(size) for size in generator_shapes(shape.num_heads * shape.head_dim, conv_size)]


def generator_shapes(channels: int, conv_size: int) -> list[tuple[int, ...]]:
    """The shapes of w1, b1, w2, b2 of a kernel generator of usual width."""
    width, taps = max(1, channels // _GENERATOR_SQUEEZE), channels * conv_size**2
    return [(width, channels), (width,), (taps, width), (taps,)]


def _cpu_sampler(run: Callable[[], object], _: torch.device) -> Sampler:
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    runs = max(1, round(_BLOCK_S / timer.timeit(1).mean))
    return lambda: [timer.timeit(runs).mean * 1e3]


def _gpu_sampler(run: Callable[[], object], device: torch.device) -> Sampler:
    flush = torch.empty(_L2_BYTES, dtype=torch.int8, device=device)

    def sample() -> list[float]:
        stream = torch.cuda.current_stream(device)
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(10)]
        for start, end in events:
            # It empties the cache, and keeps the GPU busy while the host puts the next call into the queue.
            flush.zero_()
            start.record(stream)
            run()
            end.record(stream)
        torch.cuda.synchronize(device)
        return [start.elapsed_time(end) for start, end in events]

    run()  # The first call may compile a kernel.
    torch.cuda.synchronize(device)
    warm = time.perf_counter() + _WARM_UP_S
    while time.perf_counter() < warm:
        sample()
    return sample
