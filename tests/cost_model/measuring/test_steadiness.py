"""What tells a quiet machine from a busy one, by the timings themselves."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetvit.cost_model.measuring import steadiness
from jetvit.cost_model.measuring.steadiness import (
    CoreWait,
    change_doubts,
    sample_doubts,
    spread_doubts,
    steadily,
    sum_doubts,
)
from jetvit.cost_model.measuring.timing import Latency

milliseconds = st.floats(1e-3, 1e4)


@given(milliseconds, milliseconds)
def test_a_repetition_bears_out_or_does_not(before_ms: float, after_ms: float) -> None:
    doubts = list(change_doubts("it", before_ms, after_ms))
    assert bool(doubts) == (max(before_ms / after_ms, after_ms / before_ms) > 1.5)
    assert bool(doubts) == bool(list(change_doubts("it", after_ms, before_ms)))


def test_the_numbers_are_in_the_reasons() -> None:
    assert list(change_doubts("full attention", 88.0, 1.7)) == [
        "full attention took 88 ms, and 1.7 ms when it was timed again"
    ]
    assert list(spread_doubts("the model", Latency(100.0, 60.0, 140.0, 9))) == [
        "the model takes 100 ms with quartiles of 60 and 140 ms"
    ]
    assert not list(spread_doubts("the model", Latency(100.0, 80.0, 120.0, 9)))
    assert list(sum_doubts(1056.0, 68.0)) == ["the attentions take 1.06e+03 ms together, and the whole model 68 ms"]
    assert not list(sum_doubts(50.0, 68.0))


def test_samples_that_change_half_way() -> None:
    steady = [10.0, 10.5, 9.8, 10.1, 10.0, 10.2]
    assert not list(sample_doubts({"it": steady}))
    slow_first = [30.0, 31.0, 30.0, 29.0, 30.0, 30.0, *steady, 10.0]
    assert any("when it was timed again" in doubt for doubt in sample_doubts({"it": slow_first}))


def test_measured_again_until_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steadiness, "_waited_s", lambda: 0.0)
    answers: Iterator[tuple[int, list[str]]] = iter([(1, ["spread"]), (2, []), (3, [])])
    assert steadily(lambda: next(answers)) == (2, [])
    never: Iterator[int] = iter(range(9))
    assert steadily(lambda: (next(never), ["spread"])) == (2, ["spread"])
    assert next(never) == 3


def test_waiting_for_a_core_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = iter([0.0, 1e6])
    monkeypatch.setattr(steadiness, "_waited_s", lambda: next(waited))
    (doubt,) = CoreWait().doubts()
    assert doubt.startswith("the process waited for a core 100% of the time (load ")
    assert f" on {os.cpu_count()} cores)" in doubt


def test_the_load_average_where_the_kernel_does_not_tell_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steadiness, "_waited_s", lambda: None)
    monkeypatch.setattr(steadiness, "_load", lambda: 1e3)
    assert list(CoreWait().doubts()) == [f"other processes are running (load 1000.0 on {os.cpu_count()} cores)"]
    monkeypatch.setattr(steadiness, "_load", lambda: None)
    assert not list(CoreWait().doubts())


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.skipif(steadiness._waited_s() is None, reason="this kernel does not tell of waiting")
def test_other_processes_on_every_core_are_noticed() -> None:
    others = [multiprocessing.Process(target=spin, args=(5.0,), daemon=True) for _ in range(2 * (os.cpu_count() or 1))]
    for other in others:
        other.start()
    time.sleep(0.3)
    wait = CoreWait()
    spin(0.5)
    doubts = list(wait.doubts())
    for other in others:
        other.kill()
    assert len(doubts) == 1
    assert "waited for a core" in doubts[0]
