"""Calls as CUDA graphs: the order of things by a stand-in for torch.cuda, the real thing on a GPU."""

from __future__ import annotations

import contextlib
import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jetvit.kernels import cuda_graph
from jetvit.kernels.cuda_graph import captured


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of torch.cuda, in order."""
    seen: list[str] = []

    class Stream:
        def wait_stream(self, other: Any) -> None:
            seen.append("wait")

    @contextlib.contextmanager
    def within(name: str) -> Any:
        seen.append(f"{name} begins")
        yield
        seen.append(f"{name} ends")

    stub = SimpleNamespace(
        Stream=Stream,
        current_stream=Stream,
        stream=lambda stream: within("stream"),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: seen.append("replay")),
        graph=lambda graph: within("capture"),
        set_stream=lambda stream: seen.append("back"),
    )
    monkeypatch.setattr(cuda_graph, "torch", SimpleNamespace(cuda=stub, inference_mode=torch.inference_mode))
    return seen


def test_it_warms_up_aside_and_captures_once(events: list[str]) -> None:
    def call() -> str:
        events.append("call" if gc.isenabled() else "call without the collector")
        return "out"

    replay = captured(call)
    assert events == [
        *("wait", "stream begins", "call", "call", "stream ends", "wait"),
        *("capture begins", "call without the collector", "capture ends", "back"),
    ]
    assert gc.isenabled()
    assert replay() == "out"
    assert events[-1] == "replay"


def test_a_capture_that_fails_leaves_all_as_it_was(events: list[str]) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        captured(call)
    assert gc.isenabled()
    assert events[-1] == "back"


@pytest.mark.gpu
def test_a_replay_computes_anew() -> None:
    x = torch.ones(4, device="cuda")
    replay = captured(lambda: x * 2)
    x.fill_(3)
    out = replay()
    torch.cuda.synchronize()
    assert isinstance(out, torch.Tensor)
    assert out.tolist() == [6.0] * 4
