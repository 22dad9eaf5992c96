"""Calls are timed side by side, in shuffled rounds, and their ratio is taken within a round."""

from __future__ import annotations

import random
import time

import pytest
import torch

from jetvit.cost_model.measuring import rounds
from jetvit.cost_model.measuring.rounds import in_rounds, ratio, sampler, time_ms

CPU = torch.device("cpu")


def test_a_time_is_in_milliseconds_a_call() -> None:
    assert 5 < time_ms(lambda: time.sleep(0.005), 4, CPU) < 15


@pytest.mark.parametrize(("sample_s", "calls"), [(20e-3, 4), (1e-9, 1)])
def test_a_sample_is_as_many_calls_as_fit(sample_s: float, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def takes_5_ms(run: rounds.Run, calls: int, _: torch.device) -> float:
        timed.append(calls)
        return 5.0

    warm_ups: list[None] = []
    monkeypatch.setattr(rounds, "_SAMPLE_S", sample_s)
    monkeypatch.setattr(rounds, "time_ms", takes_5_ms)
    sample = sampler(lambda: warm_ups.append(None), CPU, warm_up=3)
    assert (len(warm_ups), timed) == (3, [1])
    assert sample() == 5.0
    assert timed == [1, calls]


def test_every_round_samples_every_call_in_a_shuffled_order() -> None:
    order: list[str] = []
    samplers = [lambda name=name: order.append(name) or float(ord(name)) for name in "abc"]
    samples = in_rounds(samplers, 20)
    assert samples == [[float(ord(name))] * 20 for name in "abc"]
    turns = [tuple(order[start : start + 3]) for start in range(0, 60, 3)]
    assert all(set(each) == set("abc") for each in turns)
    assert len(set(turns)) > 3


def test_the_seed_gives_the_order() -> None:
    def order_of(seed: int) -> list[str]:
        order: list[str] = []
        in_rounds([lambda name=name: order.append(name) or 1.0 for name in "abc"], 20, seed=seed)
        return order

    assert order_of(1) == order_of(1) != order_of(2)


def test_a_time_limit_keeps_five_rounds() -> None:
    steps: list[tuple[int, int]] = []
    samples = in_rounds([lambda: 1.0], 100, time_limit_s=0.0, progress=lambda *step: steps.append(step))
    assert len(samples[0]) == 5
    assert steps == [(done, 100) for done in range(1, 6)]


def test_the_ratio_is_taken_within_rounds() -> None:
    busy = [1.0, 1.0, 10.0, 10.0, 10.0]  # a machine that is busy for a while slows down both
    middle, low, high = ratio([2 * each for each in busy], busy)
    assert (middle, low, high) == (2.0, 2.0, 2.0)
    noise = random.Random(0)
    full = [noise.gauss(3, 0.1) for _ in range(50)]
    ours = [noise.gauss(2, 0.1) for _ in range(50)]
    middle, low, high = ratio(full, ours)
    assert low < 1.5 < high
    assert high - low < 0.1
    assert ratio(full, ours) == (middle, low, high)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_waited_for() -> None:
    device = torch.device("cuda")
    a = torch.randn(4096, 4096, device=device)
    # 2·N³ FLOPs at less than 1 PFLOP/s; launching one takes the host less than that.
    assert sampler(lambda: a @ a, device)() > 2 * 4096**3 / 1e15 * 1e3
