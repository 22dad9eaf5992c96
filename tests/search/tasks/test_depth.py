"""Relative depth as a task, against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.patterns.errors import InputError
from jetvit.search.tasks.depth import Depth
from jetvit.search.tasks.heads import DPTHead
from jetvit.search.tasks.metrics import DepthMetric

TASK = Depth("depth", 0.1, 10)


def pair(seed: int, height: int = 6, width: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """An output and depths, one in ten of them unknown."""
    generator = torch.Generator().manual_seed(seed)
    depth = 0.5 + 9 * torch.rand(2, height, width, generator=generator)
    depth[torch.rand(depth.shape, generator=generator) < 0.1] = 0
    return torch.randn(2, height, width, generator=generator), depth


def test_counts_are_the_metric_of_each_image():
    output, depth = pair(0)
    counts = TASK.counts(output, depth)
    metric = DepthMetric("depth", 0.1, 10)
    assert counts.dtype == torch.float64
    assert counts.tolist() == [[*metric(*each), 1.0] for each in zip(output, depth, strict=True)]
    found = TASK.metrics(counts)
    assert found["delta1"] == pytest.approx(float(counts[:, 0].mean()))
    assert found["abs_rel"] == pytest.approx(float(counts[:, 1].mean()))
    assert TASK.metric in found


def test_metrics_by_hand():
    # The first image is right everywhere; the second's output is constant, so that 1/d is fitted by its mean 0.75,
    # d̂ = 4/3: off by 4/3 and 3/2 from 1 and 2, both above 1.25. The third has one known depth.
    output = torch.tensor([[[1.0, 0.5]], [[7.0, 7.0]], [[1.0, 0.5]]])
    depth = torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]], [[1.0, 0.0]]])
    counts = TASK.counts(output, depth)
    assert counts[0].tolist() == [1, pytest.approx(0, abs=1e-6), 1]
    assert counts[1].tolist() == [0, pytest.approx((1 / 3 + 1 / 3) / 2), 1]
    assert counts[2].tolist() == [0, 0, 0]
    assert TASK.metrics(counts) == {"delta1": 0.5, "abs_rel": pytest.approx(1 / 6)}
    assert all(math.isnan(each) for each in TASK.metrics(counts[2:]).values())


def test_the_loss_by_hand():
    # Disparities 1, 0.5 are ±1 when standardised, and the output (0, 2, unknown) is ∓1: the error is −2 and 2, its one
    # gradient 4, at the first of the four scales.
    loss = TASK.loss(torch.tensor([[[0.0, 2.0, 50.0]]]), torch.tensor([[[1.0, 2.0, math.nan]]]))
    assert loss.item() == pytest.approx(2 + 0.5 * 4)
    # Four pixels of output 0 0 0 4 (standardised −2/3 −2/3 −2/3 2) and disparities 1 1 0.5 0.5 (1 1 −1 −1).
    error = [-5 / 3, -5 / 3, 1 / 3, 3]
    gradients = (0 + 2 + 8 / 3) / 3 + 2  # of neighbours, and of pixels 0 and 2
    loss = TASK.loss(torch.tensor([[[0.0, 0.0, 0.0, 4.0]]]), torch.tensor([[[1.0, 1.0, 2.0, 2.0]]]))
    assert loss.item() == pytest.approx(sum(map(abs, error)) / 4 + 0.5 * gradients)


def test_the_loss_wants_near_to_be_large():
    depth = torch.tensor([[[1.0, 2.0, 4.0]]])
    right, flat, inverted = (float(TASK.loss(each, depth)) for each in (3 / depth + 1, 0 * depth, -1 / depth))
    assert right == pytest.approx(0, abs=1e-5)
    assert right < flat < inverted


@given(seed=st.integers(0, 99), scale=st.floats(0.05, 20), shift=st.floats(-10, 10))
@settings(max_examples=30)
def test_scale_and_shift_of_the_output_do_not_matter(seed: int, scale: float, shift: float):
    output, depth = (each.double() for each in pair(seed))
    torch.testing.assert_close(TASK.loss(scale * output + shift, depth), TASK.loss(output, depth), atol=1e-3, rtol=1e-3)
    for task in (TASK, Depth("disparity", 0.1, 10)):
        ours, theirs = task.counts(scale * output + shift, depth), task.counts(output, depth)
        # The output is float32: a pixel at the very edge of a factor of 1.25 may fall on either side.
        torch.testing.assert_close(ours, theirs, atol=0.021, rtol=1e-3)


def test_the_loss_has_no_unit():
    output, depth = pair(1)
    torch.testing.assert_close(Depth("depth", 10, 1000).loss(output, 100 * depth), TASK.loss(output, depth))


def test_what_is_unknown_does_not_matter():
    output, depth = pair(2)
    for unknown in (math.nan, math.inf, -1.0, 11.0):
        other = torch.where(depth == 0, unknown, depth)
        spoiled = torch.where(depth == 0, 1e4, output)
        torch.testing.assert_close(TASK.loss(spoiled, other), TASK.loss(output, depth))
        torch.testing.assert_close(TASK.counts(spoiled, other), TASK.counts(output, depth))


def test_the_loss_is_a_mean_over_the_images_that_say_something():
    output, depth = pair(3)
    each = [float(TASK.loss(output[i : i + 1], depth[i : i + 1])) for i in range(2)]
    assert float(TASK.loss(output, depth)) == pytest.approx(sum(each) / 2)
    depth[1] = 3  # one depth everywhere
    assert float(TASK.loss(output, depth)) == pytest.approx(each[0])


@pytest.mark.parametrize("known", [[], [1.0], [1.0, 2.0], [3.0, 3.0, 3.0]])
@pytest.mark.parametrize("constant", [False, True])
def test_gradients_are_finite(known: list[float], constant: bool):
    depth = torch.zeros(1, 5, 5)
    depth.view(-1)[: len(known)] = torch.tensor(known)
    output = torch.ones(1, 5, 5) if constant else torch.randn(1, 5, 5)
    output.requires_grad_()
    loss = TASK.loss(output, depth)
    loss.backward()
    assert math.isfinite(loss.item())
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()
    if len(set(known)) < 2:
        assert loss.item() == 0


def test_training_by_the_loss_raises_the_metric():
    _, depth = pair(4)
    output = torch.zeros_like(depth, requires_grad=True)
    optimizer = torch.optim.Adam([output], 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        TASK.loss(output, depth).backward()
        optimizer.step()
    assert TASK.metrics(TASK.counts(output.detach(), depth))["delta1"] > 0.9


def test_outputs_are_upsampled_and_the_target_cropped():
    task = Depth("depth", 0.1, 10, crop=(1, 3, 0, 4))
    output = torch.tensor([[[1.0, 0.0]]])  # upsampled to 1, 0.75, 0.25, 0
    disparity = torch.tensor([1.0, 0.875, 0.625, 0.5])
    depth = torch.full((1, 4, 4), 5.0)
    depth[:, 1:3] = 1 / disparity
    assert task.counts(output, depth)[0].tolist() == [1, pytest.approx(0, abs=1e-6), 1]
    assert float(task.loss(output, depth)) == pytest.approx(0, abs=1e-5)
    assert float(TASK.loss(output, depth)) > 0.1


def test_agreement_and_head():
    output, _ = pair(5)
    assert TASK.agreement(2 * output + 1, output).tolist() == pytest.approx([1, 1])
    assert isinstance(TASK.head([8] * 4), DPTHead)
    assert Depth("depth", 0.1, 10, taps=None).taps is None


def test_refusals():
    with pytest.raises(ValueError, match="no dialect"):
        Depth("metric", 0.1, 10)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot read 0 maps"):
        Depth("depth", 0.1, 10, taps=0)
    with pytest.raises(InputError, match="holds no pixel"):
        Depth("depth", 0.1, 10, crop=(4, 4, 0, 9))
    with pytest.raises(InputError, match="not inside"):
        Depth("depth", 0.1, 10, crop=(0, 9, 0, 9)).loss(torch.zeros(1, 4, 4), torch.ones(1, 4, 4))
    with pytest.raises(InputError, match="do not fit"):
        TASK.loss(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4))
