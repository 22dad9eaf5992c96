"""The metrics against cases that were worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.patterns.errors import InputError
from jetvit.search.tasks.metrics import Confusion, DepthMetric, closer_accuracy, label_agreement, mean_iou

VOID = 11
pixels = st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2, VOID]))
grids = st.integers(1, 4).flatmap(lambda images: st.lists(pixels, min_size=6 * images, max_size=6 * images))


def test_segmentation_by_hand():
    confusion = Confusion(3)
    confusion.add(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, VOID]]))
    confusion.add(torch.tensor([[1, 0, 0, 0]]), torch.tensor([[1, 0, 0, VOID]]))
    # Class 0: 3 hits, 4 predicted, 3 labelled. Class 1: 2 hits, 2 predicted, 3 labelled. Class 2 is nowhere.
    assert confusion.miou() == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert confusion.pixel_accuracy() == pytest.approx(5 / 6)
    assert [int(each.sum()) for each in confusion.by_image] == [3, 3]


def test_a_class_that_is_only_predicted_counts_as_nothing_right():
    confusion = Confusion(2)
    confusion.add(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))
    assert confusion.miou() == pytest.approx((1 / 2 + 0) / 2)


def test_nothing_labelled():
    confusion = Confusion(2)
    assert math.isnan(confusion.miou())
    confusion.add(torch.tensor([[0]]), torch.tensor([[VOID]]))
    assert math.isnan(confusion.miou())
    assert math.isnan(confusion.pixel_accuracy())


@given(grids)
@settings(max_examples=50, deadline=None)
def test_sums_over_images_and_not_means_of_images(pairs: list[tuple[int, int]]):
    predicted, labels = (torch.tensor(each).reshape(-1, 2, 3) for each in zip(*pairs, strict=True))
    batch, single, whole = Confusion(3), Confusion(3), Confusion(3)
    batch.add(predicted, labels)
    for image, truth in zip(predicted, labels, strict=True):
        single.add(image, truth)
    whole.add(predicted.reshape(1, -1), labels.reshape(1, -1))
    assert all(torch.equal(one, other) for one, other in zip(batch.by_image, single.by_image, strict=True))
    assert torch.equal(batch.total, whole.total)
    known = labels < 3
    ious = []
    for each in range(3):
        ours, theirs = (predicted == each) & known, labels == each
        if (ours | theirs).any():
            ious.append(float((ours & theirs).sum() / (ours | theirs).sum()))
    assert mean_iou(batch.total) == pytest.approx(np.mean(ious) if ious else math.nan, nan_ok=True)


def test_segmentation_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="a prediction is"):
        Confusion(2).add(torch.zeros(2, 2).long(), torch.zeros(2, 3).long())
    with pytest.raises(InputError, match="none of 2"):
        Confusion(2).add(torch.full((1, 2), 2), torch.zeros(1, 2).long())


@given(scale=st.floats(0.01, 100), shift=st.floats(-50, 50), dialect=st.sampled_from(["depth", "disparity"]))
def test_scale_and_shift_do_not_matter(scale: float, shift: float, dialect: str):
    depth = torch.tensor([[1.0, 2.0], [4.0, 8.0]], dtype=torch.float64)
    found = DepthMetric(dialect, 0.1, 10)(scale / depth + shift, depth)  # type: ignore[arg-type]
    assert found.delta1 == 1
    assert found.abs_rel == pytest.approx(0, abs=1e-6)


def test_depth_by_hand():
    # Disparities 1, 0.5, 0.25, and a prediction whose best fit is known: p = (0, 1, 2), s = −0.375, t = 0.9583….
    depth, predicted = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    slope, start = np.polyfit([0, 1, 2], [1, 0.5, 0.25], 1)
    aligned = np.array([start, start + slope, start + 2 * slope])
    assert (slope, start) == pytest.approx((-0.375, 0.958333333))
    found = DepthMetric("depth", 0.1, 10)(predicted, depth)
    truth = np.array([1, 2, 4])
    assert found.abs_rel == pytest.approx(np.mean(np.abs(1 / aligned - truth) / truth))
    # 1 / aligned = 1.043, 1.714, 4.8: ratios 1.043, 1.167, 1.2.
    assert found.delta1 == 1
    found = DepthMetric("disparity", 0.1, 10)(predicted, depth)
    assert found.abs_rel == pytest.approx(np.mean(np.abs(aligned - 1 / truth) * truth))


def test_the_dialects_differ():
    depth = torch.tensor([[0.5, 1.0, 2.0, 10.0]])
    predicted = torch.tensor([[1.0, 2.0, 0.0, 0.0]])
    scores = [DepthMetric(dialect, 0.1, 10)(predicted, depth) for dialect in ("depth", "disparity")]  # type: ignore[arg-type]
    assert scores[0] != scores[1]


def test_a_fitted_disparity_below_zero_is_a_miss():
    # Disparities 0.01, 0.01, 0.01 and 1 are fitted by −0.188, 0.109, 0.406 and 0.703; both ratios of the first are
    # below zero, and so below 1.25.
    depth, predicted = torch.tensor([[100.0, 100.0, 100.0, 1.0]]), torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    slope, start = np.polyfit([0, 1, 2, 3], [0.01, 0.01, 0.01, 1], 1)
    assert start == pytest.approx(-0.188)
    assert DepthMetric("disparity", 0.1, 1000)(predicted, depth).delta1 == 0
    found = DepthMetric("depth", 0.1, 1000)(predicted, depth)
    aligned = np.maximum(start + slope * np.arange(4), 1e-3)
    assert found.abs_rel == pytest.approx(np.mean(np.abs(1 / aligned / depth[0].numpy() - 1)))
    assert found.delta1 == 0


def test_what_is_out_of_range_or_masked_does_not_count():
    depth, predicted = torch.tensor([[1.0, 2.0, 4.0, 0.0, 99.0]]), torch.tensor([[1.0, 0.5, 0.25, 7.0, -3.0]])
    metric = DepthMetric("depth", 0.1, 10)
    assert metric(predicted, depth) == (1.0, pytest.approx(0, abs=1e-9))
    spoiled = torch.tensor([[1.0, 0.5, 9.0, 7.0, -3.0]])
    mask = torch.tensor([[True, True, False, True, True]])
    assert metric(spoiled, depth, mask).abs_rel == pytest.approx(0, abs=1e-9)
    with pytest.raises(InputError, match="1 pixel, and 2 are needed"):
        metric(predicted, depth, torch.tensor([[True, False, False, False, False]]))


def test_a_constant_prediction_is_no_crash():
    assert math.isfinite(DepthMetric("depth", 0.1, 10)(torch.ones(1, 3), torch.tensor([[1.0, 2.0, 4.0]])).abs_rel)


@pytest.mark.parametrize("wrong", [("depths", 1, 2), ("depth", 0, 2), ("depth", 3, 2)])
def test_no_metric(wrong: tuple[str, float, float]):
    with pytest.raises(ValueError, match=r"no dialect|no range"):
        DepthMetric(*wrong)  # type: ignore[arg-type]


def test_the_closer_point():
    disparity = torch.tensor([[5.0, 1.0], [5.0, 0.0]])
    pairs = [
        {"point1": [0, 0], "point2": [0, 1], "closer_point": "point1"},
        {"point1": [0, 0], "point2": [0, 1], "closer_point": "point2"},
        {"point1": [0, 0], "point2": [1, 0], "closer_point": "point1"},  # a tie is no answer
    ]
    assert closer_accuracy(disparity, pairs) == [True, False, False]
    with pytest.raises(InputError, match="neither point1 nor point2"):
        closer_accuracy(disparity, [{"point1": [0, 0], "point2": [0, 1], "closer_point": "left"}])


def test_label_agreement():
    ours = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # [1, class, place]
    assert label_agreement(ours, ours) == 1
    assert label_agreement(ours, torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])) == 0.5


def test_labels_in_bytes():
    confusion = Confusion(256)
    confusion.add(torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([[0, 255]], dtype=torch.uint8))
    assert (int(confusion.total.sum()), confusion.miou()) == (2, 1.0)


def test_what_would_broadcast_or_wrap_around_is_refused():
    with pytest.raises(InputError, match="score maps are"):
        label_agreement(torch.zeros(2, 3, 4), torch.zeros(1, 3, 4))
    with pytest.raises(InputError, match="is outside of"):
        closer_accuracy(torch.zeros(2, 2), [{"point1": [-1, 0], "point2": [0, 1], "closer_point": "point1"}])
