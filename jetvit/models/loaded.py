"""`LoadedModel`, and what the loaders of every kind of model share."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from jetvit.models.torchvision_shim import ensure_torchvision
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted

DEVICES = "use cpu, cuda or cuda:N"
SEED = 0  # of random weights, so that runs repeat


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode (an exported program as it was exported), and what its configuration says about its input.

    `kwargs` are the keyword inputs of its forward besides the images. `input_name` is the keyword that takes the
    images, None where they come first by position. `mean` and `std` normalise images on the scale 0–1; `image_size`
    is the (height, width) in pixels that it was configured or exported for, `input_size` that of the images that its
    own processor makes. Fields that the model does not specify are None.
    `random_weights`: its latency is real, its outputs mean nothing. `notes` are sentences that the user should see.
    """

    model: nn.Module | ExportedProgram
    spec: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    input_name: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    patch_size: int | None = None
    image_size: tuple[int, int] | None = None
    input_size: tuple[int, int] | None = None
    random_weights: bool = False
    notes: list[str] = field(default_factory=list)

    def inputs(self, images: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The (args, kwargs) of a forward over `images` [B, 3, H, W]."""
        if self.input_name is None:
            return (images,), dict(self.kwargs)
        return (), {self.input_name: images, **self.kwargs}


def refuse_missing(device: torch.device) -> None:
    """Raise InputError for a GPU that torch does not see."""
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"the device {device} is not there",
            why=f"torch sees {counted(torch.cuda.device_count(), 'CUDA device')}",
            do="use --device cpu, or a torch built for this machine's GPU",
        )


@contextmanager
def seeded() -> Iterator[None]:
    """Random weights that repeat, without touching the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def import_package(name: str) -> Any:
    """Import timm or transformers."""
    ensure_torchvision()  # both import torchvision, which may be there without its operators
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"cannot import {name}", why=str(error), do='pip install "jetvit[models]"') from error


def reason(error: BaseException) -> str:
    """The type of an error and the start of its message, on one line."""
    text = " ".join(str(error).split())
    return type(error).__name__ + (f": {text[:300]}" if text else "")


def square_side(value: Any) -> int | None:
    """A patch's side in pixels; None where it is unknown or not square."""
    sides = both_sides(value)
    return sides[0] if sides is not None and sides[0] == sides[1] else None


def both_sides(value: Any) -> tuple[int, int] | None:
    """(height, width) of an int or a pair; None for anything else."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return value[0], value[1]
    return None
