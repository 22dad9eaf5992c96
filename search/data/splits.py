"""The images of a search: what a sample is, what a split is, and that the splits of a search share no image."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from jetvit.patterns.errors import InputError

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """An image as the model takes it, [3, height, width], and what the task wants for it; None without labels."""

    image: Tensor
    target: Tensor | None = None


def collate(samples: Sequence[Sample]) -> tuple[Tensor, Tensor | None]:
    """The images of a batch [batch, 3, height, width] and its targets; None for these where a sample has none."""
    targets = [target for _, target in samples if target is not None]
    return torch.stack([image for image, _ in samples]), torch.stack(targets) if len(targets) == len(samples) else None


def filled_up(images: Tensor, batch: int) -> Tensor:
    """Images [n, …] and as many copies of the first as make whole batches: a captured model takes no others."""
    return torch.cat([images, images[:1].expand(-len(images) % batch, *images.shape[1:])])


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most so many of `count` places, the first among them."""
    most = min(most, count)
    return [number * count // most for number in range(most)]


class Split(Protocol):
    """Images of one size, with or without targets.

    * keys: the sha256 of every image file, in hex, or anything else that is the same for the same image only.
    * groups: what every image was taken from, such as a film, in the order of the images; "" where that is not known.
      Frames of one film that follow each other stand next to each other.
    """

    @property
    def keys(self) -> Sequence[str]: ...
    @property
    def groups(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Splits:
    """The images that train, those that choose, and those that are read once, for the report.

    Raises:
        InputError: one of them is empty, or an image is in two of them.
    """

    train: Split
    select: Split
    test: Split

    def __post_init__(self) -> None:
        named = {"train": self.train, "select": self.select, "test": self.test}
        for name, split in named.items():
            if not len(split):
                raise InputError(f"the {name} split has no images", do="give more images, or other splits")
        places: dict[str, str] = {}
        for name, split in named.items():
            for key in dict.fromkeys(split.keys):
                if places.setdefault(key, name) != name:
                    raise InputError(
                        f"the {places[key]} and {name} splits share an image",
                        why=f"its sha256 begins with {key[:12]}",
                        do="take doubles out: what is tested must not have been trained on",
                    )
        for one, other in (("train", "select"), ("train", "test"), ("select", "test")):
            shared = sorted((set(named[one].groups) & set(named[other].groups)) - {""})
            if shared:
                log.warning("%s and %s images are from the same %s", one, other, ", ".join(shared[:3]))

    def record(self) -> dict[str, Any]:
        """Entries for a plan's provenance: how many images each split has, and the sha256 of their keys."""
        found: dict[str, Any] = {}
        for name in ("train", "select", "test"):
            split: Split = getattr(self, name)
            found[f"images_{name}"] = len(split)
            found[f"split_{name}"] = hashlib.sha256("\n".join(split.keys).encode()).hexdigest()[:16]
        shared = sorted((set(self.train.groups) & set(self.test.groups)) - {""})
        if shared:
            found["test_shares_with_train"] = shared
        return found
