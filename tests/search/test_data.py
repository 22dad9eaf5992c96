"""Splits: what must not be shared, and what is written down."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest
import torch

from jetvit.patterns.errors import InputError
from jetvit.search.data import Sample, Splits


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
