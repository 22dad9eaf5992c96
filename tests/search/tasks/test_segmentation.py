"""Segmentation as a task, against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.patterns.errors import InputError
from jetvit.search.tasks.heads import LinearHead
from jetvit.search.tasks.segmentation import Segmentation

VOID = 11


def logits(classes: list[int], count: int) -> torch.Tensor:
    """[1, count, 1, len(classes)], with 1 at the class of each place and 0 elsewhere."""
    return torch.nn.functional.one_hot(torch.tensor(classes), count).float().T.reshape(1, count, 1, -1)


def test_metrics_by_hand():
    task = Segmentation(3)
    counts = torch.cat(
        [
            task.counts(logits([0, 0, 1, 1], 3), torch.tensor([[[0, 1, 1, VOID]]])),
            task.counts(logits([1, 0, 0, 0], 3), torch.tensor([[[1, 0, 0, VOID]]])),
        ]
    )
    assert (counts.shape, counts.dtype) == ((2, 9), torch.float64)
    assert counts.sum(1).tolist() == [3, 3]
    # Class 0: 3 hits, 4 predicted, 3 labelled. Class 1: 2 hits, 2 predicted, 3 labelled. Class 2 is nowhere.
    found = task.metrics(counts)
    assert found == {"miou": pytest.approx((3 / 4 + 2 / 3) / 2), "pixel_accuracy": pytest.approx(5 / 6)}
    assert task.metric in found


def test_logits_are_upsampled_to_the_target():
    # Two places at pixels 0 and 1 of two stand at 0.5 and 2.5 of four; the middle is halfway.
    task, output = Segmentation(2), logits([0, 1], 2)
    target = torch.tensor([[[0, 0, 1, 1]]])
    assert task.metrics(task.counts(output, target))["miou"] == 1
    margins = torch.tensor([1.0, 0.5, 0.5, 1.0])  # of the right class over the wrong one
    expected = torch.log(1 + torch.exp(-margins)).mean()
    torch.testing.assert_close(task.loss(output, target), expected)


def test_the_loss_passes_over_void():
    task, output = Segmentation(2), torch.randn(1, 2, 1, 3)
    known = task.loss(output[..., :2], torch.tensor([[[0, 1]]]))
    for void in (2, 255, -1, -100):
        torch.testing.assert_close(task.loss(output, torch.tensor([[[0, 1, void]]])), known)
    assert float(task.loss(output, torch.tensor([[[0, 1, 255]]], dtype=torch.uint8))) == pytest.approx(float(known))


def test_nothing_labelled():
    task, output = Segmentation(2), torch.randn(2, 2, 2, 2, requires_grad=True)
    target = torch.full((2, 4, 4), VOID)
    loss = task.loss(output, target)
    loss.backward()
    assert loss.item() == 0
    assert output.grad is not None
    assert torch.equal(output.grad, torch.zeros_like(output))
    assert all(math.isnan(each) for each in task.metrics(task.counts(output, target)).values())


def test_constant_logits_have_finite_gradients():
    output = torch.zeros(1, 3, 2, 2, requires_grad=True)
    Segmentation(3).loss(output, torch.tensor([[[0, 1], [2, VOID]]])).backward()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


@given(seed=st.integers(0, 99), shift=st.floats(-50, 50))
@settings(max_examples=20)
def test_a_shift_of_all_logits_changes_nothing(seed: int, shift: float):
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(2, 4, 3, 3, generator=generator)
    target = torch.randint(0, 6, (2, 5, 7), generator=generator)
    task = Segmentation(4)
    torch.testing.assert_close(task.loss(output + shift, target), task.loss(output, target), atol=1e-4, rtol=1e-4)
    batch = task.counts(output, target)
    assert torch.equal(batch, torch.cat([task.counts(output[i : i + 1], target[i : i + 1]) for i in range(2)]))


def test_agreement():
    task = Segmentation(2)
    ours, theirs = logits([0, 1, 1, 1], 2), logits([0, 0, 1, 1], 2)
    assert task.agreement(torch.cat([ours, theirs]), torch.cat([theirs, theirs])).tolist() == [0.75, 1]


def test_heads():
    head = Segmentation(5).head([8, 16])
    assert isinstance(head, LinearHead)
    assert head([torch.zeros(1, 8, 2, 2), torch.randn(1, 16, 2, 2)]).shape == (1, 5, 2, 2)
    assert Segmentation(5, taps=None).taps is None


def test_refusals():
    with pytest.raises(InputError, match="nothing to tell apart"):
        Segmentation(1)
    with pytest.raises(InputError, match="reads 1 map"):
        Segmentation(2, taps=4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no score for each of 3 classes"):
        Segmentation(3).loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2))
