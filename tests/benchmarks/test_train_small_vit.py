"""The training of the small Vision Transformer, from the first step to the file, at a size of two patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks import train_small_vit as program
from benchmarks.train_small_vit import Stage, Trainer, depth_loss, main, steps_within, train
from jetvit.demo.scenes import render
from jetvit.demo.small_vit import SmallViT

STAGES = (Stage(16, 2, 0.5), Stage(24, 1, 0.25), Stage(32, 1, 0.25))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(program, "STAGES", STAGES)


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "new" / "weights.safetensors"
    main(["--steps", "1", "1", "1", "--rooms", "1", "-o", str(file)])
    assert "1 held-out rooms: δ1 0." in capsys.readouterr().out
    SmallViT().load_state_dict(load_file(file))
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["steps"] == "1 1 1"
    main(["--steps", "0", "1", "0", "--seed", "1", "--rooms", "1", "--start", str(file), "-o", str(file)])
    with safe_open(file, "pt") as opened:
        assert (opened.metadata()["steps"], opened.metadata()["seed"]) == ("1 1 1 + 0 1 0", "0 + 1")


@pytest.mark.slow
def test_the_seed_and_the_steps_give_the_weights():
    first, same, other = (train((1, 1, 1), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], other["blocks.0.mlp.fc1.weight"])


@pytest.mark.slow
def test_it_learns_the_rooms_that_it_sees(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(program, "render", lambda count, size, seed: render(count, size, 1))
    trainer = Trainer()
    losses = [trainer.step(STAGES[0], 0.3) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_the_loss_is_free_of_a_factor():
    depth = torch.rand(2, 4, 4) + 1
    assert depth_loss(torch.tensor([3.0, 0.5]).view(2, 1, 1) / depth, depth) < 1e-6
    assert depth_loss(1 / depth**2, depth) > 0.01


@pytest.mark.slow
def test_minutes_become_steps():
    few, many = steps_within(0.001), steps_within(1.0)
    assert len(few) == len(many) == len(STAGES)
    assert all(1 <= less < more for less, more in zip(few, many, strict=True))
