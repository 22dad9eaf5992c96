"""Images for calibration, checks and demos: folders of image files, sizes, and drawn stand-ins."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from jetvit.models.image_files import ImageFiles
from jetvit.models.image_reading import (
    MAX_PIXELS,
    read_image,
)
from jetvit.patterns.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageFolder:
    """The images under a folder, as normalised batches; a `limit` takes an evenly spaced subset, always the same.

    Each image is read as RGB by `read_image`, resized to exactly `size` (bicubic with antialiasing; the aspect ratio is
    not kept), scaled to 0–1 and normalised by `mean` and `std` per channel.

    Args:
        images: the folder, or the files that `ImageFiles.find` found in it.
        size: (height, width) in pixels.
        mean, std: three numbers each, on the scale 0–1.
        limit: at most so many images; only for a folder.

    Raises:
        InputError: as `ImageFiles.find`.
    """

    def __init__(
        self,
        images: str | Path | ImageFiles,
        size: tuple[int, int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        limit: int | None = None,
    ):
        found = images if isinstance(images, ImageFiles) else ImageFiles.find(images, limit)
        self.path, self.files = found.path, list(found.files)
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """The image at `index` of `files`: float32 [3, H, W], normalised.

        Raises:
            InputError: as `read_image`.
        """
        return normalise(read_image(self.files[index], self.size), self.mean, self.std)

    def batches(self, batch_size: int = 1) -> Iterator[Tensor]:
        """Yield float32 [B, 3, H, W] in the order of `files`; the last batch may be smaller.

        Raises:
            InputError: as for a single image.
        """
        for start in range(0, len(self), batch_size):
            yield torch.stack([self[i] for i in range(start, min(start + batch_size, len(self)))])

    def digest(self) -> str:
        """The sha256 (hex) of the contents of `files` in their order: the same pictures give the same digest."""
        total = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
        return total.hexdigest()


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images − mean) / std per channel, for [..., 3, H, W] on the scale 0–1."""
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def parse_size(text: str) -> tuple[int, int]:
    """Read "704x960" as (704, 960): height, then width, in pixels.

    Raises:
        InputError: not of the form HxW, a side below 1, or an image that no memory holds.
    """
    match = re.fullmatch(r"\s*(-?[0-9]{1,18})\s*[xX×]\s*(-?[0-9]{1,18})\s*", text)
    if match is None:
        side = text.strip()
        hint = f"--size {side}x{side}" if re.fullmatch("[0-9]{1,6}", side) else "--size 704x960"
        raise InputError(f"{text!r} is no image size", why="a size is HEIGHTxWIDTH in pixels", do=f"write {hint}")
    height, width = int(match[1]), int(match[2])
    if min(height, width) < 1:
        why = f"a side is {min(height, width)} pixels"
        raise InputError(f"{text!r} is no image size", why=why, do="give both sides 1 or more")
    if height * width > MAX_PIXELS:
        why = f"it is {height * width:.3g} pixels, of which one image takes {12e-9 * height * width:,.0f} GB"
        raise InputError(f"{text!r} is too large", why=why, do=f"give at most {MAX_PIXELS:.3g} pixels")
    return height, width


def check_size(size: tuple[int, int], patch_size: int) -> None:
    """Check that patches of `patch_size` pixels tile an image of `size` (height, width).

    Raises:
        InputError: they do not; the nearest sizes that fit are named.
    """
    height, width = size
    if height % patch_size == 0 and width % patch_size == 0:
        return
    smaller = [max(side // patch_size, 1) * patch_size for side in size]
    larger = [-(-side // patch_size) * patch_size for side in size]
    fits = dict.fromkeys(f"{h}x{w}" for h, w in (smaller, larger))
    raise InputError(
        f"the size {height}x{width} does not fit the model",
        why=f"its patches of {patch_size}×{patch_size} pixels must tile the image",
        do="use --size " + " or ".join(fits),
    )


def synthetic_images(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Draw random pictures for use without data: gradients with soft-edged ellipses and rectangles on them.

    Returns:
        float32 [count, 3, H, W] on the scale 0–1; the same seed draws the same pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    y = ((torch.arange(height) + 0.5) / height).view(-1, 1)
    x = ((torch.arange(width) + 0.5) / width).view(1, -1)
    softness = 1.5 / min(size)  # edges of about a pixel and a half, as a lens makes them
    pictures = []
    for _ in range(count):
        top, down, across = torch.rand(3, 3, 1, 1, generator=generator)
        picture = top + (down - 0.5) * y + (across - 0.5) * x
        for shape in range(8):
            colour = torch.rand(3, 1, 1, generator=generator)
            cy, cx, a, b = torch.rand(4, generator=generator).tolist()
            a, b = 0.05 + 0.25 * a, 0.05 + 0.25 * b
            if shape % 2:
                inside = a - ((y - cy) ** 2 + (x - cx) ** 2).sqrt()
            else:
                inside = torch.minimum(a - (y - cy).abs(), b - (x - cx).abs())
            cover = torch.sigmoid(inside / softness)
            picture = picture + cover * (colour - picture)
        pictures.append(picture.clamp(0, 1))
    return torch.stack(pictures)
