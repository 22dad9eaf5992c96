"""Keeping features as a task, against cases worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.patterns.errors import InputError
from jetvit.search.tasks.drift import Drift
from jetvit.search.tasks.features import Features

TASK = Features()


def test_by_hand():
    # Channel means 1 and 10: variations 2 and 0. Errors of 1 in one place of the first image, none in the second.
    target = torch.tensor([[[[0.0, 2.0]], [[10.0, 10.0]]]]).repeat(2, 1, 1, 1)
    output = target.clone()
    output[0, 1, 0, 0] += 1
    counts = TASK.counts(output, target)
    assert counts.tolist() == [[1, 2], [0, 2]]
    assert counts.dtype == torch.float64
    assert TASK.metrics(counts) == {"explained": 1 - 1 / 4}
    assert float(TASK.loss(output, target)) == pytest.approx((1 / 2 + 0) / 2)


def test_the_mean_of_an_image_explains_nothing():
    target = torch.randn(3, 4, 5, 6)
    mean = target.mean((2, 3), keepdim=True).expand_as(target)
    assert TASK.metrics(TASK.counts(mean, target))["explained"] == pytest.approx(0, abs=1e-6)
    assert TASK.metrics(TASK.counts(target, target))["explained"] == 1


@given(seed=st.integers(0, 99), scale=st.floats(0.1, 10))
@settings(max_examples=20)
def test_it_is_the_drift_and_has_no_unit(seed: int, scale: float):
    output, target = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    drift = Drift([target], (2, 3))
    drift.add(0, output)
    assert TASK.metrics(TASK.counts(output, target))["explained"] == pytest.approx(1 - drift.total)
    assert float(TASK.loss(scale * output, scale * target)) == pytest.approx(sum(drift.per_image) / 3, rel=1e-4)


def test_gradients_are_finite_where_the_target_does_not_vary():
    output = torch.ones(1, 2, 3, 3, requires_grad=True)
    TASK.loss(output, torch.ones(1, 2, 3, 3)).backward()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


def test_head_and_agreement():
    head = Features(taps=2).head([2, 3])
    maps = [torch.randn(1, 2, 4, 4), torch.randn(1, 3, 4, 4)]
    assert torch.equal(head(maps), torch.cat(maps, 1))
    assert not list(head.parameters())
    assert TASK.agreement(3 * maps[0], maps[0]).tolist() == pytest.approx([1])


def test_refusals():
    with pytest.raises(InputError, match="no number"):
        Features(taps=-1)
    with pytest.raises(InputError, match="do not fit"):
        TASK.loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 3, 3))
