"""A model as a task sees it: the tokens at its taps, and what a head makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from jetvit.search.calibration.runner import Output, pick
from jetvit.search.data.stream import Inputs
from jetvit.search.tasks.taps import Taps


@dataclass(frozen=True)
class ExtractedFeatures:
    """Tokens at each tap [batch, token, channel], the task's output, and the result of the model itself."""

    tokens: list[Tensor]
    output: Tensor
    result: object = None


@dataclass(frozen=True)
class FeatureExtractor:
    """A model with its taps and its head, which extracts features from images.

    * model: a captured graph, with the taps in it.
    * head: takes the maps of the taps; None where the task's output is the model's own.
    * inputs: from images to what the model is called with. output: which tensor of the result is the task's, if `head`
      is None.
    """

    model: Callable[..., object]
    taps: Taps
    head: nn.Module | None
    inputs: Inputs
    output: Output = None

    def __call__(self, images: Tensor) -> ExtractedFeatures:
        """Run the model, and its head, on images [batch, 3, height, width]."""
        tokens, result = self._run(images)
        output = pick(result, self.output) if self.head is None else self.head(self.maps(tokens))
        return ExtractedFeatures(tokens, output, result)

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Return only the tokens at the taps."""
        return self._run(images)[0]

    def maps(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Return the input of the head: the grid tokens as maps [batch, channel, height, width]."""
        return [each.float() for each in self.taps.maps(tokens)]

    def _run(self, images: Tensor) -> tuple[list[Tensor], object]:
        args, kwargs = self.inputs(images)
        with self.taps.reading():
            result = self.model(*args, **kwargs)
            return self.taps.tokens(), result


def relative_error(tokens: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """[batch]: squared error over the variation of the reference over its tokens, the mean over the taps.

    0 is no change; 1 is as wrong as the mean over the tokens in the place of each. What reads the taps normalises every
    token first, heads of ours and those of DINOv2 and DINOv3 alike, and so does this, before anything else.
    """
    shares = []
    for ours, theirs in zip(tokens, reference, strict=True):
        ours, theirs = (F.layer_norm(each.float(), each.shape[-1:]) for each in (ours, theirs))
        variation = (theirs - theirs.mean(1, keepdim=True)).square().flatten(1).sum(1)
        shares.append((ours - theirs).square().flatten(1).sum(1) / variation.clamp_min(1e-12))
    return sum(shares[1:], shares[0]) / len(shares)
