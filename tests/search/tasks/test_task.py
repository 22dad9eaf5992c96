"""What every task has in common."""

from __future__ import annotations

import math

import pytest
import torch

from jetvit.search.tasks.depth import Depth
from jetvit.search.tasks.features import Features
from jetvit.search.tasks.segmentation import Segmentation
from jetvit.search.tasks.task import Task

TASKS: list[Task] = [Segmentation(3), Depth("disparity", 0.1, 10, taps=2), Features(taps=2)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_from_maps_to_metrics(task: Task):
    assert task.taps is not None
    channels = [4, 6]
    head = task.head(channels)
    maps = [torch.randn(2, each, 3, 5, requires_grad=True) for each in channels]
    output = head(maps)
    if not task.labelled:
        target = (output + torch.randn_like(output)).detach()
    elif task.name == "depth":
        target = 0.5 + torch.rand(2, 9, 7)
    else:
        target = torch.randint(0, 3, (2, 9, 7))
    loss = task.loss(output, target)
    assert (loss.shape, bool(torch.isfinite(loss))) == ((), True)
    loss.backward()
    assert maps[-1].grad is not None
    assert torch.isfinite(maps[-1].grad).all()
    output = output.detach()
    counts = task.counts(output, target)
    assert (counts.dtype, len(counts), counts.dim()) == (torch.float64, 2, 2)
    assert math.isfinite(task.metrics(counts)[task.metric])
    assert task.agreement(output, output).tolist() == pytest.approx([1, 1])
