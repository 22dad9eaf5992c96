"""The program behind the table of local distillation: its batches, its head and its scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks import local_distillation as program
from benchmarks.local_distillation import BATCH, all_features, main, score, train_head


def test_a_model_of_one_batch_size_sees_every_image_once():
    seen: list[int] = []

    def features(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images * 2

    images = torch.arange(5.0).reshape(5, 1, 1, 1)
    assert torch.equal(all_features(features, images), images * 2)
    assert seen == [BATCH] * 3


def test_the_head_learns_and_is_scored(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(program, "CLASSES", 2)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (6, 4, 6), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    features = torch.stack([labels[:, ::8, ::8], 1 - labels[:, ::8, ::8]], 1).float()
    labels[:, :2] = 11  # void
    monkeypatch.setattr(program, "CLASSES", 2)
    labels[labels == 11] = 2
    head = train_head(features, labels, steps=100)
    found = score(head, features, features, labels)
    assert found["miou"] > 0.6
    assert found["low"] <= found["miou"] <= found["high"]
    assert (found["drift"], found["images"]) == (0, 6)
    swapped = score(head, features.flip(1), features, labels)
    assert swapped["miou"] < 0.4
    assert swapped["drift"] > 1


def test_the_score_is_that_of_the_head(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(program, "CLASSES", 2)
    head = nn.Conv2d(2, 2, 1)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2).reshape(2, 2, 1, 1))
        head.bias.zero_()
    features = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]] * 2)  # class 0, class 1, on both images
    assert score(head, features, features, torch.tensor([[[0, 0]]] * 2))["miou"] == 0.25


def test_without_data_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("JETVIT_DATA", raising=False)
    main([])
    assert "not measured: give --data DIR" in capsys.readouterr().out
