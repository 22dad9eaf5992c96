"""How the kernel benchmark takes the time, and what the device can reach at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.kernels.shapes import Ceilings
from jetvit.kernels.cuda_graph import captured

Call = Callable[[], object]

ROUNDS = 3
_WARM_UP_MS, _SAMPLE_MS = 20, 80  # of one round on a GPU
_CPU_SAMPLES = 3  # of one round
_GRAPH_BELOW_MS = 5.0  # what runs longer does not wait for the host


class Stopwatch:
    """The latency of one warm call, sampled a round at a time.

    how: "graph" for the replay of a CUDA graph, which costs a few µs more than its kernels, "events" for plain calls on
    a GPU, "clock" on a CPU. launched_ms: the median of plain calls, in which a GPU may wait for the host. samples_ms:
    what was sampled so far.
    """

    def __init__(self, call: Call, device: torch.device):
        self._timed, self.how = call, "clock"
        self._call = call  # what a graph reads must live as long as the graph
        self._measure = _events if device.type == "cuda" else _clock
        self.launched_ms = statistics.median(self._measure(call))
        self.samples_ms: list[float] = []
        if device.type == "cuda":
            self.how = "events"
            if self.launched_ms < _GRAPH_BELOW_MS:
                self._capture()

    def sample(self) -> None:
        """Take the samples of one round."""
        self.samples_ms += self._measure(self._timed)

    @property
    def quartiles_ms(self) -> tuple[float, float, float]:
        """The points that 25, 50 and 75 % of the samples lie below."""
        low, middle, high = statistics.quantiles(self.samples_ms, n=4, method="inclusive")
        return low, middle, high

    def _capture(self) -> None:
        try:
            self._timed, self.how = captured(self._call), "graph"
        except RuntimeError as error:
            print(f"  not captured, timed call by call: {str(error).splitlines()[0]}")


def ceilings(device: torch.device) -> Ceilings:
    """The speed of a large copy and of a large bf16 product, the median of each."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    source = torch.randn(size * size * 8, device=device).to(torch.bfloat16)
    target = torch.empty_like(source)
    copy, product = Stopwatch(lambda: target.copy_(source), device), Stopwatch(lambda: a @ b, device)
    for _ in range(ROUNDS):
        copy.sample()
        product.sample()
    return Ceilings(2 * source.nbytes / copy.quartiles_ms[1] / 1e9, 2 * size**3 / product.quartiles_ms[1] / 1e9)


def _events(call: Call) -> list[float]:
    """Milliseconds of calls between two events, each after the L2 cache was emptied."""
    from triton.testing import do_bench

    return list(do_bench(call, warmup=_WARM_UP_MS, rep=_SAMPLE_MS, return_mode="all"))


def _clock(call: Call) -> list[float]:
    found = []
    for _ in range(_CPU_SAMPLES):
        start = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - start))
    return found
