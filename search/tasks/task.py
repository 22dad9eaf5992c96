"""The task of a search: a head that reads the model's features, a loss to train with, and a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class Task(Protocol):
    """A task. `segmentation.py`, `depth.py` and `features.py` have some; any object with these members will do.

    * name: "segmentation", …
    * metric: the entry of `metrics` that the search maximises.
    * taps: how many blocks, evenly spaced and the last among them, the head reads; 0 for those that are read behind
      the blocks of the model; None where the model itself yields the output, with a head of its own.
    * labelled: whether there are targets. Without them the target is the output of the original model.
    """

    @property
    def name(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def taps(self) -> int | None: ...
    @property
    def labelled(self) -> bool: ...

    def head(self, channels: Sequence[int]) -> nn.Module:
        """A new head: it takes a list of maps [batch, channels[i], height, width] and yields the output.

        It is never called where `taps` is None. Its initial weights are drawn from torch's global random state.
        """

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """A scalar, the mean over the images of a batch. Sizes of output and target may differ."""

    def counts(self, output: Tensor, target: Tensor) -> Tensor:
        """[batch, n] in float64: what has to be known of each image for the metrics of any set of images."""

    def metrics(self, counts: Tensor) -> dict[str, float]:
        """The metrics of images with these counts, [images, n]."""

    def agreement(self, output: Tensor, reference: Tensor) -> Tensor:
        """[batch]: how far an output agrees with that of the original model, 1 for the same."""
