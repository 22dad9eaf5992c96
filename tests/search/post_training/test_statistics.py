"""Intervals and paired differences by the bootstrap."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.patterns.errors import InputError
from jetvit.search.post_training.statistics import Difference, interval, non_inferior, paired
from jetvit.search.tasks.segmentation import Segmentation

images = st.lists(st.floats(-100, 100), min_size=2, max_size=12).map(lambda each: torch.tensor(each)[:, None])


def mean(counts: torch.Tensor) -> float:
    return float(counts.double().mean())


def test_the_mean_of_many_has_the_interval_of_the_normal_distribution():
    counts = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    low, high = interval(mean, counts, resamples=4000)
    half = 1.96 * float(counts.std()) / math.sqrt(400)
    assert (low, high) == pytest.approx((mean(counts) - half, mean(counts) + half), abs=0.1 * half)


def test_two_images_by_hand():
    # Draws of 0 and 1: the mean is 0 and 1 a quarter of the time each, far above 2.5 %.
    assert interval(mean, torch.tensor([[0.0], [1.0]])) == (0, 1)


def test_frames_in_runs_are_surer_of_nothing():
    films = torch.randn(20, generator=torch.Generator().manual_seed(0)).repeat_interleave(10)[:, None]
    low, high = interval(mean, films)
    wide = interval(mean, films, run=10)
    assert wide[1] - wide[0] > 2 * (high - low)


@given(images, st.integers(0, 9))
@settings(max_examples=30)
def test_a_model_against_itself(counts: torch.Tensor, seed: int):
    assert paired(mean, counts, counts, resamples=50, seed=seed) == (0, 0, 0)


@given(images, st.floats(-10, 10))
@settings(max_examples=30)
def test_the_same_step_on_every_image_is_certain(counts: torch.Tensor, step: float):
    found = paired(mean, counts.double() + step, counts.double(), resamples=50)
    assert found == pytest.approx((step, step, step), abs=1e-9)


@given(images, st.integers(0, 9))
@settings(max_examples=30)
def test_sides_can_be_changed_and_seeds_repeat(counts: torch.Tensor, seed: int):
    other = counts.flip(0)
    one = paired(mean, counts, other, resamples=50, seed=seed)
    assert one == paired(mean, counts, other, resamples=50, seed=seed)
    swapped = paired(mean, other, counts, resamples=50, seed=seed)
    assert (-swapped.mean, -swapped.high, -swapped.low) == pytest.approx(one, abs=1e-9)


def test_pairs_are_surer_than_their_parts():
    easy = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    ours = easy + 0.1
    low, high = interval(mean, easy)
    found = paired(mean, ours, easy)
    assert found.high - found.low < 0.01 * (high - low)


def test_non_inferior():
    assert non_inferior(Difference(0.0, -0.004, 0.01), 0.005)
    assert not non_inferior(Difference(0.0, -0.006, 0.01), 0.005)
    assert not non_inferior(Difference(0.0, 0.0, 0.0), 0)
    assert not non_inferior(Difference(math.nan, math.nan, math.nan), 0.005)
    with pytest.raises(InputError, match="no margin"):
        non_inferior(Difference(0, 0, 0), -0.1)


@pytest.mark.parametrize(("count", "run"), [(0, 1), (1, 1), (3, 3), (3, 0)])
def test_what_cannot_be_drawn(count: int, run: int):
    with pytest.raises(InputError, match="cannot be drawn"):
        interval(mean, torch.zeros(count, 1), run=run)


def test_no_pairs():
    with pytest.raises(InputError, match="no pairs"):
        paired(mean, torch.zeros(3, 1), torch.zeros(4, 1))


def test_it_takes_less_than_a_second():
    task = Segmentation(11)
    counts = torch.randint(0, 1000, (101, 121)).double()
    start = time.perf_counter()
    low, high = interval(lambda each: task.metrics(each)["miou"], counts, run=10)
    assert time.perf_counter() - start < 1
    assert low < task.metrics(counts)["miou"] < high
