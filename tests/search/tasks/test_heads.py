"""Heads: sizes on any grid, and what they do not depend on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.patterns.errors import InputError
from jetvit.search.tasks.heads import DPTHead, LinearHead


def test_a_linear_head_by_hand():
    head = LinearHead(2, 1)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([3.0, 1.0]).view(1, 2, 1, 1))
        head.linear.bias.fill_(10)
    features = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)  # normalised: −1 and 1
    torch.testing.assert_close(head([features]), torch.full((1, 1, 1, 1), 8.0), atol=1e-4, rtol=0)


def test_a_linear_head_reads_the_last_map_and_no_scale():
    head, (early, late) = LinearHead(4, 3), torch.randn(2, 1, 4, 2, 3)
    torch.testing.assert_close(head([early, late]), head([5 * late + 7]), atol=1e-4, rtol=0)
    assert head([early, late]).shape == (1, 3, 2, 3)


@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels=st.lists(st.integers(2, 6), min_size=1, max_size=5),
    batch=st.integers(1, 2),
)
@settings(max_examples=30, deadline=None)
def test_dpt_takes_any_grid_and_any_number_of_maps(height: int, width: int, channels: list[int], batch: int):
    head = DPTHead(channels, width=4)
    output = head([torch.randn(batch, each, height, width) for each in channels])
    assert output.shape == (batch, 4 * height, 4 * width)
    output.sum().backward()
    assert all(each.grad is not None and torch.isfinite(each.grad).all() for each in head.parameters())


def test_the_dpt_pyramid():
    head = DPTHead([8] * 5, width=4)
    assert [level(torch.randn(1, 8, 5, 6)).shape[2:] for level in head.levels] == [
        (20, 24),
        (10, 12),
        (5, 6),
        (3, 3),
        (3, 3),
    ]


def test_a_batch_is_its_images():
    head = DPTHead([8, 8, 8, 8], width=4)
    maps = [torch.randn(2, 8, 3, 5) for _ in range(4)]
    alone = torch.cat([head([each[row : row + 1] for each in maps]) for row in range(2)])
    torch.testing.assert_close(head(maps), alone, atol=1e-5, rtol=1e-4)


def test_dpt_reads_every_map():
    head = DPTHead([4] * 4, width=4)
    maps = [torch.randn(1, 4, 3, 3, requires_grad=True) for _ in range(4)]
    grads = torch.autograd.grad(head(maps).square().sum(), maps)
    assert all(each.abs().sum() > 0 for each in grads)


def test_dpt_learns():
    torch.manual_seed(0)
    head, maps = DPTHead([4, 4], width=8), [torch.randn(1, 4, 3, 3) for _ in range(2)]
    target = torch.randn(1, 12, 12)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = (head(maps) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_no_map():
    with pytest.raises(InputError, match="needs a map"):
        DPTHead([])
