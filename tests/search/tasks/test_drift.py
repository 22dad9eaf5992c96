"""Drift against hand-worked cases, and its laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jetvit.patterns.errors import InputError
from jetvit.search.tasks.drift import Drift, agreement, check_finite, place_axes


def drift(outputs: list[torch.Tensor], references: list[torch.Tensor], places: tuple[int, ...] | None = None) -> Drift:
    collect = Drift(references, place_axes(references[0]) if places is None else places)
    for index, output in enumerate(outputs):
        collect.add(index, output)
    return collect


def test_tokens_by_hand():
    # One image, tokens 1 and 3 of one channel: mean 2, variation 1 + 1. Errors 1 and 0.
    reference = torch.tensor([[[1.0], [3.0]]])
    assert drift([torch.tensor([[[2.0], [3.0]]])], [reference]).total == pytest.approx(0.5)


def test_the_mean_is_taken_per_channel():
    # Channels 0 and 100 do not differ within themselves but for one token: the offset between channels is no variation.
    reference = torch.tensor([[[0.0, 100.0], [2.0, 100.0]]])
    assert drift([reference + torch.tensor([1.0, 0.0])], [reference]).total == pytest.approx(1.0)


def test_maps_are_averaged_over_rows_and_columns():
    depth = torch.tensor([[[0.0, 2.0], [4.0, 6.0]]])  # [batch, row, col]: mean 3, variation 9 + 1 + 1 + 9
    assert drift([depth + 1], [depth], places=(1, 2)).total == pytest.approx(4 / 20)


def test_a_pooled_output_varies_over_the_set():
    references = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])]  # mean 3, variation 9 + 1 + 1 + 9
    assert drift([r + 1 for r in references], references).total == pytest.approx(4 / 20)


def test_an_output_that_does_not_vary_is_refused():
    with pytest.raises(InputError, match="does not vary") as caught:
        Drift([torch.ones(1, 4)], ())
    assert "more than one image" in str(caught.value)


def test_an_output_that_is_not_finite_drifts_infinitely():
    reference = torch.randn(2, 5, 3)
    assert drift([torch.full_like(reference, math.nan)], [reference]).total == math.inf


@given(seed=st.integers(0, 1000), batch=st.integers(1, 3), split=st.integers(1, 3), scale=st.floats(0.01, 100))
def test_laws(seed: int, batch: int, split: int, scale: float):
    torch.manual_seed(seed)
    references = [torch.randn(batch, 6, 4, dtype=torch.float64) for _ in range(split)]
    outputs = [r + 0.1 * torch.randn_like(r) for r in references]
    whole = drift(outputs, references)
    assert drift(references, references).total == 0
    means = [r.mean(1, keepdim=True).expand_as(r) for r in references]
    assert drift(means, references).total == pytest.approx(1)
    # Neither the unit of the output nor the way images are put into batches plays a part.
    assert drift([scale * o for o in outputs], [scale * r for r in references]).total == pytest.approx(whole.total)
    assert drift([torch.cat(outputs)], [torch.cat(references)]).total == pytest.approx(whole.total)
    assert len(whole.per_image) == batch * split
    assert min(whole.per_image) <= whole.total <= max(whole.per_image) + 1e-12


def test_agreement_is_correlation():
    reference = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert agreement(2 * reference + 5, reference) == pytest.approx([1])
    assert agreement(-reference, reference) == pytest.approx([-1])


def test_a_nan_is_named():
    with pytest.raises(InputError, match="the output of x is not finite") as caught:
        check_finite(torch.tensor([1.0, math.nan]), "the output of x")
    assert "1 of 2 values" in str(caught.value)
    assert "weights" in str(caught.value)
