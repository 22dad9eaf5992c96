"""The search as a step of a campaign: what it needs, and what it says where that is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu import search_step
from benchmarks.gpu.campaign import Campaign, Skipped, TimeOver
from benchmarks.gpu.processes import Outcome, Task

KNOWN = {"device": "CPU", "torch": "2", "triton": "3", "code": "abc"}


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign(tmp_path / "out", torch.device("cpu"), False, KNOWN)


def test_without_data_it_says_so(campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (step,) = search_step.steps(dry=False)
    monkeypatch.delenv("JETVIT_DATA", raising=False)
    with pytest.raises(Skipped, match="JETVIT_DATA names no folder"):
        step.run(campaign, 60)
    monkeypatch.setenv("JETVIT_DATA", str(tmp_path))
    (tmp_path / "camvid" / "train" / "images").mkdir(parents=True)
    with pytest.raises(Skipped, match=r"has no vit_tiny_patch16_224.safetensors, camvid/val/images"):
        step.run(campaign, 60)
    (tmp_path / "camvid" / "val" / "images").mkdir(parents=True)
    (tmp_path / "vit_tiny_patch16_224.safetensors").touch()
    with pytest.raises(Skipped, match=r"no latency table .* the latency sweep makes it"):
        step.run(campaign, 60)
    assert not step.is_done(campaign)


@pytest.mark.parametrize(("status", "error"), [(0, None), (1, RuntimeError), (None, TimeOver)])
def test_three_seeds_are_searched_at_the_large_size(
    campaign: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, error: type | None
) -> None:
    ran: list[Task] = []

    def run(tasks: list[Task], **_: object) -> list[Outcome]:
        ran.extend(tasks)
        return [Outcome(tasks[0].name, status, 1.0, "the last line")]

    monkeypatch.setattr(search_step, "run_together", run)
    monkeypatch.setattr(search_step, "_NEEDED", ())
    monkeypatch.setattr(Path, "exists", lambda path: True)
    monkeypatch.setenv("JETVIT_DATA", str(tmp_path))
    (step,) = search_step.steps(dry=False)
    if error is None:
        step.run(campaign, 60)
    else:
        with pytest.raises(error):
            step.run(campaign, 60)
    words = " ".join(ran[0].arguments["arguments"])
    assert "--seeds 3 --size 704x960" in words
    assert "--table" in words
