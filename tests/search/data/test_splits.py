"""Splits: what must not be shared, and what is written down."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest
import torch

from jetvit.patterns.errors import InputError
from jetvit.search.data.splits import Sample, Splits, collate, evenly_spaced, filled_up


@dataclass
class Named:
    keys: list[str]
    groups: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int, /) -> Sample:
        return Sample(torch.zeros(3, 2, 2))


def test_doubles_are_refused_across_splits_alone():
    Splits(Named(["a", "a"]), Named(["b"]), Named(["c"]))
    with pytest.raises(InputError, match="train and test splits share an image"):
        Splits(Named(["a", "b"]), Named(["c"]), Named(["b"]))


@pytest.mark.parametrize("empty", ["train", "select", "test"])
def test_an_empty_split(empty: str):
    named = {name: Named([] if name == empty else [name]) for name in ("train", "select", "test")}
    with pytest.raises(InputError, match=f"the {empty} split has no images"):
        Splits(**named)


def test_shared_groups_are_warned_of_and_written_down(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        splits = Splits(Named(["a"], ["film"]), Named(["b"], [""]), Named(["c"], ["film"]))
    assert "train and test images are from the same film" in caplog.text
    assert splits.record()["test_shares_with_train"] == ["film"]


def test_the_record_tells_splits_apart():
    one = Splits(Named(["a"]), Named(["b"]), Named(["c"])).record()
    other = Splits(Named(["a"]), Named(["b"]), Named(["d"])).record()
    assert one["images_test"] == 1
    assert [name for name in one if one[name] != other[name]] == ["split_test"]
    assert "test_shares_with_train" not in one


@pytest.mark.parametrize(
    ("count", "most", "places"),
    [(5, 8, [0, 1, 2, 3, 4]), (8, 4, [0, 2, 4, 6]), (10, 3, [0, 3, 6]), (1, 1, [0]), (0, 8, [])],
)
def test_places_are_evenly_spaced(count: int, most: int, places: list[int]):
    assert evenly_spaced(count, most) == places


def test_a_batch_is_filled_up_with_its_first_image():
    images = torch.arange(5.0).reshape(5, 1)
    assert filled_up(images, 3).flatten().tolist() == [0, 1, 2, 3, 4, 0]
    assert filled_up(images, 5).flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_batch_has_targets_where_every_sample_has_one():
    image, target = torch.zeros(3, 2, 2), torch.ones(2, 2)
    images, targets = collate([Sample(image, target)] * 2)
    assert images.shape == (2, 3, 2, 2)
    assert targets is not None
    assert targets.shape == (2, 2, 2)
    assert collate([Sample(image, target), Sample(image)])[1] is None
