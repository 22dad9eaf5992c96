"""Find and read the targets beside images: label maps and depth maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jetvit.models.image_files import Look
from jetvit.models.image_reading import orientation_of, readable, upright
from jetvit.models.images import ImageFolder
from jetvit.patterns.errors import InputError
from jetvit.search.tasks.task import Task

_NUMBERS = ("L", "I", "I;16", "I;16B")


def target_kind(
    task: Task, depth_scale: float | None, saturated: int | None
) -> tuple[str, Callable[[Path], Tensor] | None]:
    """The name of the folder of targets, and what reads one of them."""
    kind = target_folder(task)
    if not kind:
        return "", None
    if kind == "labels":
        return kind, _read_labels
    if depth_scale is None or not depth_scale > 0:
        raise InputError(
            f"depths cannot be read at a scale of {depth_scale}",
            why="a PNG holds whole numbers, and not metres",
            do="give depth_scale, the metres of one unit, such as 0.001",
        )
    return kind, partial(_read_depth, scale=depth_scale, saturated=saturated)


def target_folder(task: Task) -> str:
    """The name of the folder of targets; "" for a task without."""
    if not task.labelled:
        return ""
    return "depths" if task.name == "depth" else "labels"


def target_of(images: Path, kind: str, file: Path) -> Path:
    return images.parent / kind / file.relative_to(images).with_suffix(".png")


def target_fault(images: Path, kind: str, file: Path, look: Look) -> str:
    """Why the target of an image cannot be read, or "". A missing target is refused later, if its image is used.

    Raises:
        InputError: the image is turned by EXIF, and it is unknown whether the target is.
    """
    target = target_of(images, kind, file)
    if not kind or not target.is_file():
        return ""
    try:
        with readable(target), Image.open(target) as opened:
            opened.load()
            turned, (width, height) = orientation_of(opened) != 1, opened.size
    except InputError as error:
        return f"{target.relative_to(images.parent)}: {error.why}"
    if look.orientation == 1 or turned:
        return ""
    lies = (width > height) != (look.size[0] > look.size[1])
    if look.orientation < 5 or lies or width == height:
        raise InputError(
            f"it is unknown which way up {target} is",
            why=f"its image is turned by EXIF (orientation {look.orientation}), the target has no such tag, and its "
            + ("size is that of the image before it is turned" if lies else "size fits the image both ways"),
            where=str(file),
            do="save the image and its target upright, without the tag",
        )
    return ""


def target_files(images: ImageFolder, rows: Sequence[int], kind: str) -> list[Path]:
    """The target of each image, beside the folder of images."""
    files = [images.files[row].relative_to(images.path) for row in rows]
    targets = [target_of(images.path, kind, images.files[row]) for row in rows]
    first: tuple[int, int] | None = None
    for file, target in zip(files, targets, strict=True):
        if not target.is_file():
            raise InputError(
                f"no {kind} for the image {file}",
                why=f"there is no {target}",
                do="add it, or take the image out; a target is a PNG of the image's name",
            )
        with readable(target), Image.open(target) as opened:
            mode, size = opened.mode, upright(opened).size
        if mode not in _NUMBERS and not (kind == "labels" and mode == "P"):
            raise InputError(
                f"{target} holds no {kind}",
                why=f"its mode is {mode}",
                do="save one whole number a pixel: 8 or 16 bits, one channel",
            )
        if size != (first := first or size):
            raise InputError(
                f"{kind} of two sizes cannot be put into one batch",
                why=f"{first[0]}×{first[1]} pixels are wide and high at first, and then {size[0]}×{size[1]}",
                where=str(target),
                do="bring them to one size, labels by the nearest neighbour",
            )
    return targets


def _read_labels(file: Path) -> Tensor:
    """[height, width] of class numbers, uint8 or int32."""
    numbers = _read_numbers(file)
    return torch.from_numpy(numbers if numbers.dtype == np.uint8 else numbers.astype(np.int32))


def _read_depth(file: Path, scale: float, saturated: int | None) -> Tensor:
    """[height, width] in metres, float32; 0 where unknown."""
    numbers = _read_numbers(file)
    depth = torch.from_numpy(numbers.astype(np.float32) * np.float32(scale))
    return depth if saturated is None else depth.masked_fill(torch.from_numpy(numbers == saturated), 0)


def _read_numbers(file: Path) -> np.ndarray:
    with readable(file), Image.open(file) as opened:
        return np.array(upright(opened))
