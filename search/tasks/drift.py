"""Drift of an output: squared error over the reference's own variation.

drift = Σ‖f̂ − f‖² / Σ‖f − f̄‖², with f̄ the mean of f per image and channel over its tokens or pixels, both sums over all
images. For an output without tokens, [batch, features], f̄ is the mean over the images. 0 is no change; 1 is as wrong as
giving the mean of the picture for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted


def place_axes(output: Tensor, channel_axes: Sequence[int] | None = None) -> tuple[int, ...]:
    """The axes of tokens or pixels of an output.

    Args:
        output: a tensor whose first axis is the batch.
        channel_axes: the axes that are channels, where they are known; else [B, C, h, w] and [B, N, C] are assumed.
    """
    if channel_axes is None:
        channel_axes = {4: (1,), 3: (2,), 2: (1,)}.get(output.dim(), ())
    return tuple(axis for axis in range(1, output.dim()) if axis not in channel_axes)


@dataclass
class Drift:
    """Collects drift over images against references that are kept, in double precision sums.

    Args:
        references: the outputs of the original model, one [B, …] tensor a batch.
        places: the axes of tokens or pixels; none for a [B, features] output.
    Raises:
        InputError: the references do not vary.
    """

    references: Sequence[Tensor]
    places: tuple[int, ...]
    _errors: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._variations = self._variation()
        if not sum(self._variations) > 0:
            raise InputError(
                "the model's output does not vary, so there is nothing to compare a drift with",
                why="every image gives the same output" if self.places else "a pooled output needs more than one image",
                do="give two or more different images for each half, or name another output",
            )

    def add(self, index: int, output: Tensor) -> None:
        """Count the outputs of one batch against reference `index`."""
        self.count(self.errors(index, output))

    def errors(self, index: int, output: Tensor) -> list[float]:
        """The squared error of each output of one batch against reference `index`, for `count`."""
        return squared_errors(output, self.references[index])

    def count(self, errors: Sequence[float]) -> None:
        """Count the errors of the next batch."""
        self._errors += errors

    @property
    def per_image(self) -> list[float]:
        """The drift of each image alone, in the order of `add`."""
        return [error / max(own, 1e-300) for error, own in zip(self._errors, self._variations, strict=True)]

    @property
    def total(self) -> float:
        """The drift over the images so far; infinite if an output was not finite."""
        return self.of(self._errors)

    def of(self, errors: Sequence[float]) -> float:
        """The drift of a model with these errors on the first images; infinite if one is not finite."""
        value = sum(errors) / max(sum(self._variations[: len(errors)]), 1e-300)
        return value if value == value else float("inf")

    def _variation(self) -> list[float]:
        if self.places:
            return [value for each in self.references for value in variations(each, self.places)]
        pooled = torch.cat(list(self.references)).double()
        return squared_errors(pooled, pooled.mean(0, keepdim=True))


def squared_errors(output: Tensor, reference: Tensor) -> list[float]:
    """The squared distance of each image's output from its reference, in double precision."""
    return (output.double() - reference.double()).square().flatten(1).sum(1).tolist()


def variations(reference: Tensor, places: tuple[int, ...]) -> list[float]:
    """The squared distance of each image's output from its own mean over tokens or pixels."""
    return squared_errors(reference, reference.double().mean(places, keepdim=True))


def agreement(output: Tensor, reference: Tensor) -> list[float]:
    """The correlation of each image's centred output with its reference: 1 for the same, 0 for nothing in common."""
    pairs = []
    for ours, theirs in zip(output.double().flatten(1), reference.double().flatten(1), strict=True):
        ours, theirs = ours - ours.mean(), theirs - theirs.mean()
        pairs.append(float(ours @ theirs / (ours.norm() * theirs.norm()).clamp_min(1e-300)))
    return pairs


def check_finite(output: Tensor, what: str) -> Tensor:
    """The tensor itself.

    Raises:
        InputError: it has a NaN or an infinity.
    """
    if not bool(torch.isfinite(output).all()):
        raise InputError(
            f"{what} is not finite",
            why=f"NaN or infinite: {int((~torch.isfinite(output)).sum())} of {counted(output.numel(), 'value')}",
            do="check the weights and the images; fp16 may overflow where bf16 does not",
        )
    return output
