"""Launches are written down on request, and kernels are used only where they can run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from jetvit.kernels import launch as launch_module
from jetvit.kernels.launch import Config, Launch, has_kernel, launch, power_of_two, record_launches, split_count


def test_recorded_launches_are_not_made() -> None:
    kernel, config = object(), Config(4, 2, {"BLOCK": 64})
    with record_launches() as outer:
        launch(kernel, (1,), {"x": 1}, config)
        with record_launches() as inner:
            launch(kernel, (2,), {"x": 2}, config)
        launch(kernel, (3,), {"x": 3}, config)
    assert outer == [Launch(kernel, (1,), {"x": 1}, config), Launch(kernel, (3,), {"x": 3}, config)]
    assert inner == [Launch(kernel, (2,), {"x": 2}, config)]


def test_a_configuration_says_what_it_is() -> None:
    assert str(Config(8, 3, {"ROWS": 4, "BLOCK_W": 16})) == "rows=4 block_w=16 warps=8 stages=3"
    assert str(Config(8, 3, {}, splits_per_sm=2)) == "warps=8 stages=3 splits_per_sm=2"


@given(
    programs=st.integers(1, 5000),
    tokens=st.integers(1, 70_000),
    block=st.sampled_from([16, 64]),
    per_sm=st.integers(1, 4),
)
@example(programs=2, tokens=149, block=64, per_sm=2)
def test_splits_fill_one_wave_and_not_a_program_more(programs, tokens, block, per_sm) -> None:
    """17 splits of 16 heads are 272 programs where 264 fit: the last 8 would take as long as all others.

    And 149 tokens of 2 heads are 3 blocks, whatever fits: of 132 splits 129 would be empty.
    """
    slots, blocks = 132 * per_sm, -(-tokens // block)
    splits = split_count(Config(4, 2, {}, per_sm), programs, tokens, block, torch.device("cpu"))
    assert 1 <= splits <= blocks
    assert splits == 1 or splits * programs <= slots
    assert splits == blocks or (splits + 1) * programs > slots


@given(size=st.integers(1, 1000))
def test_power_of_two(size) -> None:
    result = power_of_two(size)
    assert result.bit_count() == 1
    assert max(size, 16) <= result < max(2 * size, 17)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "expected"),
    [
        (torch.float16, 64, True),
        (torch.float32, 128, True),
        (torch.float32, 2, True),
        (torch.float64, 64, False),
        (torch.bfloat16, 64, False),  # the interpreter's bf16 is wrong
        (torch.float32, 129, False),
        (torch.float32, 160, False),
        (torch.float32, 63, False),
    ],
)
def test_what_the_kernels_take_in_the_interpreter(monkeypatch, dtype, head_dim, expected) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(launch_module, "interpreted", lambda: True)
    assert has_kernel(torch.empty(1, 2, 3, head_dim, dtype=dtype)) is expected


def test_a_cpu_runs_the_reference(monkeypatch) -> None:
    monkeypatch.setattr(launch_module, "interpreted", lambda: False)
    assert not has_kernel(torch.empty(1, 2, 3, 64))


def test_triton_need_not_be_installed(monkeypatch) -> None:
    monkeypatch.setattr(launch_module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(launch_module, "interpreted", lambda: True)
    assert not has_kernel(torch.empty(1, 2, 3, 64))
