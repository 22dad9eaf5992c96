"""Batches: every image once an epoch, equal parts for the processes, and the same ones after a kill."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jetvit.patterns.errors import InputError
from jetvit.search.data.processes import Processes
from jetvit.search.data.splits import Sample
from jetvit.search.data.stream import Stream


class Numbered:
    """Images whose pixels are their number, growing to the right; so are the targets, unless there are none."""

    def __init__(self, count: int, labelled: bool = True):
        self.keys, self.groups, self.labelled = [str(n) for n in range(count)], [""] * count, labelled

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int, /) -> Sample:
        image = index + torch.tensor([0.0, 0.25, 0.5]).expand(3, 2, 3)
        return Sample(image, image[0].clone() if self.labelled else None)


class Part(Processes):
    """One of several processes."""

    def __init__(self, index: int, count: int):
        self.index, self.count = index, count


def numbers(images: torch.Tensor) -> list[int]:
    return images.amin((1, 2, 3)).int().tolist()


@given(count=st.integers(1, 12), batch=st.integers(1, 5), seed=st.text(max_size=2))
def test_each_image_once_an_epoch(count: int, batch: int, seed: str):
    stream = Stream(Numbered(count), batch, seed, Processes())
    steps = 3 * count  # 3 · batch epochs
    seen = [number for step in range(steps) for number in numbers(stream(step)[0])]
    epochs = [seen[first : first + count] for first in range(0, len(seen), count)]
    assert len(epochs) == 3 * batch
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)


def test_epochs_and_seeds_differ():
    one, other = (Stream(Numbered(20), 20, seed, Processes()) for seed in ("a", "b"))
    orders = [numbers(stream(step)[0]) for stream in (one, other) for step in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@given(st.integers(1, 9), st.integers(1, 3), st.lists(st.integers(0, 40), min_size=1), st.booleans())
def test_a_step_is_the_same_whatever_was_asked_before(count: int, batch: int, steps: list[int], flip: bool):
    stream = Stream(Numbered(count), batch, "a", Processes(), flip=flip)
    for step in steps:
        fresh = Stream(Numbered(count), batch, "a", Processes(), flip=flip)
        assert torch.equal(stream(step)[0], fresh(step)[0])


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 20), st.booleans())
def test_processes_see_the_parts_of_one_batch(count: int, part: int, processes: int, step: int, flip: bool):
    split = Numbered(count)
    whole = Stream(split, part * processes, "a", Processes(), flip=flip)(step)
    parts = [Stream(split, part * processes, "a", Part(n, processes), flip=flip)(step) for n in range(processes)]
    for place in (0, 1):
        assert all(len(each[place]) == part for each in parts)
        assert torch.equal(torch.cat([each[place] for each in parts]), whole[place])


def test_flip_mirrors_both_by_a_coin():
    stream = Stream(Numbered(50), 50, "a", Processes(), flip=True)
    images, targets = stream(0)
    assert targets is not None
    assert torch.equal(images[:, 0], targets)
    mirrored = images[:, 0, 0, 0] > images[:, 0, 0, 2]
    assert 10 < int(mirrored.sum()) < 40
    assert torch.equal(images.diff(dim=-1).sign().amin((1, 2, 3)) < 0, mirrored), "a part of an image was mirrored"
    plain, _ = Stream(Numbered(50), 50, "a", Processes())(0)
    assert (plain.diff(dim=-1) > 0).all()
    assert numbers(plain) == numbers(images)


def test_without_labels_there_are_no_targets():
    assert Stream(Numbered(3, labelled=False), 2, "a", Processes(), flip=True)(0)[1] is None


def test_a_batch_that_cannot_be_divided():
    Stream(Numbered(3), 4, "a", Part(0, 2))
    for batch in (3, 0):
        with pytest.raises(InputError, match=f"a batch of {batch} cannot be divided among 2 processes"):
            Stream(Numbered(3), batch, "a", Part(0, 2))
