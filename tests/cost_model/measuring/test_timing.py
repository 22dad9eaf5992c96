from __future__ import annotations

import time
from itertools import combinations

import pytest
import torch

from jetvit.cost_model import AttentionShape, Choice, measure_choices, time_choice
from jetvit.cost_model.measuring import timing
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS

CHOICES = [
    Choice("full"),
    Choice("window", window=(8, 8)),
    Choice("linear"),
    Choice("linear", conv_size=3, feature_map="hedgehog"),
]
SMALL = AttentionShape(batch=2, num_heads=2, head_dim=16, grid=(12, 10), extra_before=5, extra_after=1)


def test_tokens():
    assert SMALL.tokens == 126


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_what_is_timed_is_the_attention_of_that_shape(choice: Choice, dtype: torch.dtype):
    shape = AttentionShape(**{**vars(SMALL), "dtype": dtype})
    q, k, v = timing._random_qkv(shape)
    assert q.shape == (2, 126, 2, 16)
    assert not torch.equal(q, k)
    out = timing._attention(choice, shape, q, k, v)()
    assert out.dtype == dtype
    assert out.shape == ((2, 2, 126, 16) if choice.kind == "full" else (2, 126, 2, 16))


def test_each_feature_map_is_timed_by_its_own_call():
    q, k, v = timing._random_qkv(SMALL)
    maps = [Choice("linear", feature_map=name) for name in FEATURE_MAPS]
    outputs = [timing._attention(choice, SMALL, q, k, v)() for choice in maps]
    assert all(not torch.allclose(one, other) for one, other in combinations(outputs, 2))


def test_the_scale_is_that_of_the_site():
    q, k, v = timing._random_qkv(SMALL)
    own = timing._attention(Choice("full"), AttentionShape(**{**vars(SMALL), "scale": 0.25}), q, k, v)()
    # 16^-0.5 is the default.
    torch.testing.assert_close(own, timing._attention(Choice("full"), SMALL, q, k, v)())
    other = timing._attention(Choice("full"), AttentionShape(**{**vars(SMALL), "scale": 1.0}), q, k, v)()
    assert not torch.allclose(own, other)


def test_a_window_over_the_whole_grid_is_full_attention():
    q, k, v = timing._random_qkv(SMALL)
    window = timing._attention(Choice("window", window=(12, 10)), SMALL, q, k, v)()
    torch.testing.assert_close(window.transpose(1, 2), timing._attention(Choice("full"), SMALL, q, k, v)())


def test_every_choice_is_measured_once_a_round():
    latencies = measure_choices([*CHOICES, CHOICES[0]], SMALL, rounds=3)
    assert list(latencies) == CHOICES
    for latency in latencies.values():
        assert latency.reps == 3
        assert 0 < latency.q25_ms <= latency.median_ms <= latency.q75_ms


def test_one_round_is_run_whatever_the_limit():
    assert {latency.reps for latency in measure_choices(CHOICES, SMALL, time_limit_s=0).values()} == {1}


def test_the_limit_ends_the_rounds():
    start = time.perf_counter()
    latency = time_choice(Choice("full"), SMALL, time_limit_s=0.2)
    measure_choices(CHOICES[:1], SMALL, rounds=10**6, time_limit_s=0.2)
    assert time.perf_counter() - start < 5
    assert latency.reps >= 1


def test_rounds_are_shuffled_and_interleaved(monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    def sampler(label: str, _: torch.device) -> timing.Sampler:
        def sample() -> list[float]:
            seen.append(label)
            return [1.0]

        return sample

    monkeypatch.setattr(timing, "_cpu_sampler", sampler)
    monkeypatch.setattr(timing, "_attention", lambda choice, *_: choice.label)
    measure_choices(CHOICES, SMALL, rounds=8)
    turns = [tuple(seen[i : i + 4]) for i in range(0, len(seen), 4)]
    assert len(turns) == 8
    assert all(sorted(turn) == sorted(choice.label for choice in CHOICES) for turn in turns)
    assert len(set(turns)) > 2


def test_the_summary_is_median_and_quartiles():
    assert timing.summary([4.0, 1.0, 2.0, 3.0, 100.0]) == timing.Latency(3.0, 2.0, 4.0, 5)


def test_a_latency_is_in_milliseconds_a_call(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "_attention", lambda *_: lambda: time.sleep(0.02))
    assert 19 < time_choice(Choice("full"), SMALL, time_limit_s=0.3).q25_ms < 60


@pytest.mark.slow
def test_full_attention_costs_more_than_windows_over_many_tokens():
    shape = AttentionShape(batch=1, num_heads=6, head_dim=64, grid=(64, 64), extra_before=5)
    latencies = measure_choices(CHOICES, shape, time_limit_s=4)
    assert latencies[CHOICES[0]].median_ms > 2 * latencies[CHOICES[1]].median_ms


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_timed_with_events():
    shape = AttentionShape(1, 12, 64, (64, 128), extra_before=5, dtype=torch.bfloat16, device="cuda")
    latencies = measure_choices(CHOICES, shape, time_limit_s=5)
    assert all(latency.reps >= 10 for latency in latencies.values())
    # 4·N²·D·H FLOPs at less than 1 PFLOP/s.
    assert latencies[CHOICES[0]].median_ms > 4 * 8197**2 * 64 * 12 / 1e15 * 1e3
