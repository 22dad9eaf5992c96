"""Evaluations: a row an image, whatever the batches and the processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jetvit.search.data.processes import Processes
from jetvit.search.post_training.evaluation import Evaluator
from jetvit.search.post_training.feature_extractor import FeatureExtractor
from jetvit.search.post_training.train import Run
from jetvit.search.tasks.features import Features
from jetvit.search.tasks.segmentation import Segmentation
from tests.search.tiny import LINEAR, WINDOW, Noise, disturb, extractors

Trio = tuple[dict[int, tuple[FeatureExtractor, FeatureExtractor]], Segmentation]


@pytest.fixture(scope="module")
def by_batch() -> Trio:
    """By batch size: what reads a converted model, and what reads the original; one head for all."""
    task = Segmentation(2)
    torch.manual_seed(0)
    head, found = task.head([32]), {}
    for batch in (1, 2, 3):
        net, extractor, teacher = extractors(2, batch, head=head)
        disturb(net)
        for number, site in enumerate(net.choice_sites.values()):
            site.active = (LINEAR, WINDOW)[number]
        found[batch] = extractor, teacher
    return found, task


def test_batches_play_no_part(by_batch: Trio):
    # Five images: 2 + 2 + 1 and 3 + 2 are padded, 1 is not.
    found, task = by_batch
    results = {
        batch: Evaluator(teacher, task, Noise(5, 1, "segmentation"), batch, Run())(extractor)
        for batch, (extractor, teacher) in found.items()
    }
    one = results[1]
    assert (one.counts.shape, one.errors.shape, one.agreement.shape) == ((5, 4), (5,), (5,))
    assert one.counts.sum(1).tolist() == [64 * 64] * 5
    assert (one.errors > 1e-3).all()
    for result in results.values():
        assert (result.counts - one.counts).abs().max() <= 4  # pixels on the edge of two classes
        torch.testing.assert_close(result.errors, one.errors, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(result.agreement, one.agreement, rtol=0, atol=0.13)


class Turned:
    """A split from its end to its beginning."""

    def __init__(self, split: Noise):
        self.split, self.keys, self.groups = split, split.keys[::-1], split.groups[::-1]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int, /) -> object:
        return self.split[len(self) - 1 - index]


def test_rows_are_in_the_order_of_the_images(by_batch: Trio):
    (extractor, teacher), task = by_batch[0][2], by_batch[1]
    split = Noise(5, 1, "segmentation", groups=list("abcde"))
    forth = Evaluator(teacher, task, split, 2, Run())
    back = Evaluator(teacher, task, Turned(split), 2, Run())  # type: ignore[arg-type]
    assert (forth.groups, back.groups) == (list("abcde"), list("edcba"))
    torch.testing.assert_close(back(extractor).errors.flip(0), forth(extractor).errors, rtol=1e-4, atol=1e-6)
    assert len(set(forth(extractor).errors.tolist())) == 5


class Collected(Processes):
    """One of two processes; the second knows what the first gave."""

    count = 2

    def __init__(self, index: int, rows: list[object]):
        self.index, self.rows = index, rows

    def gather(self, rows: object) -> list[object]:  # type: ignore[override]
        self.rows += rows  # type: ignore[arg-type]
        return list(self.rows)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_processes_share_the_images(by_batch: Trio, count: int):
    (extractor, teacher), task = by_batch[0][1], by_batch[1]
    split, rows, results = Noise(count, 1, "segmentation"), [], []
    for index in (1, 0):  # the rows of the second come first, and have to be put in order
        run = Run(processes=Collected(index, rows))
        if index == 0 or count > 1:
            results.append(Evaluator(teacher, task, split, 1, run)(extractor))
    alone = Evaluator(teacher, task, split, 1, Run())(extractor)
    for one, other in zip(vars(results[-1]).values(), vars(alone).values(), strict=True):
        assert torch.equal(one, other)


def test_a_limit_takes_images_evenly_spaced(by_batch: Trio):
    (extractor, teacher), task = by_batch[0][2], by_batch[1]
    split = Noise(6, 1, "segmentation", groups=list("abcdef"))
    some = Evaluator(teacher, task, split, 2, Run(), limit=3)
    every = Evaluator(teacher, task, split, 2, Run(), limit=99)
    assert (some.groups, every.groups) == (["a", "c", "e"], list("abcdef"))
    torch.testing.assert_close(some(extractor).errors, every(extractor).errors[::2], rtol=1e-4, atol=1e-6)


def test_without_a_comparison_the_original_runs_only_for_want_of_labels(by_batch: Trio):
    (extractor, teacher), task = by_batch[0][2], by_batch[1]
    calls: list[Tensor] = []

    def counted(images: Tensor) -> object:
        calls.append(images)
        return teacher(images)

    labelled = Evaluator(counted, task, Noise(2, 1, "segmentation"), 2, Run())  # type: ignore[arg-type]
    result = labelled(extractor, compare=False)
    assert not calls
    assert result.errors.isnan().all()
    assert result.agreement.isnan().all()
    assert torch.equal(result.counts, labelled(extractor).counts)
    calls.clear()
    net, bare, original = extractors(2, 2, head=Features().head([32]))
    disturb(net)
    unlabelled = Evaluator(original, Features(), Noise(3, 1), 2, Run())
    with net.path(dict.fromkeys(net.choice_sites, LINEAR)):
        result = unlabelled(bare, compare=False)
        assert Features().metrics(result.counts)["explained"] < 0.999
        assert torch.equal(result.counts, unlabelled(bare).counts)


def test_progress_is_told(by_batch: Trio):
    (extractor, teacher), task = by_batch[0][2], by_batch[1]
    told: list[tuple[str, int, int]] = []
    run = Run(progress=lambda *what: told.append(what))
    Evaluator(teacher, task, Noise(3, 1, "segmentation"), 2, run)(extractor, "looking")
    assert told == [("looking", 1, 2), ("looking", 2, 2)]
