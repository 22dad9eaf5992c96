"""Decode one image file: upright by its EXIF orientation, of any mode, as a tensor."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from jetvit.patterns.errors import InputError

MAX_PIXELS = 10**9  # of one image: 12 GB in float32
# Pillow's ways to say "broken", with those of its parsers that it lets through.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error),
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112
_TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes an image upright, by its EXIF orientation."""


def read_image(file: Path, size: tuple[int, int]) -> Tensor:
    """Read an image file as float32 [3, *size] on the scale 0–1.

    The image is turned as its EXIF orientation says. Transparency is drawn on white. 16-bit greyscale is scaled by
    65535. Of several frames the first is read.

    Args:
        file: of any format that Pillow reads.
        size: (height, width) in pixels, which the image is resized to.
    Raises:
        InputError: the file is no image, is truncated, or has a mode without a known range, such as floats.
    """
    with readable(file), Image.open(file) as opened:
        pixels = _resized(opened, size)
    return pixels


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Raise an InputError that names the file for what Pillow raises on a broken image.

    Raises:
        InputError: the file cannot be read as an image.
    """
    try:
        yield
    except BROKEN as error:
        raise InputError(
            f"{file} is no image that can be read", why=reading_error(error), do="repair the file, or remove it"
        ) from error


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of a decoded image, 1 to 8; 1, upright, where there is none or it is damaged."""
    if image.format == "TIFF":  # Pillow has turned it while it decoded; older releases leave the tag
        return 1
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the bytes are anyone's: the parser raises whatever it meets
        return 1
    return orientation if orientation in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; the mode and the values stay."""
    image.load()  # Pillow turns some formats itself while it decodes, and then removes the tag
    turn = _TURNS[orientation_of(image)]
    return image if turn is None else image.transpose(turn)


def refuse_unscaled(image: Image.Image) -> None:
    """Raise ValueError for values whose range is unknown. A 16-bit PNG or PGM may be decoded as mode "I"."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(
            f"its mode is {image.mode}, whose largest value is unknown; convert it to 8 or 16 bits a channel"
        )


def is_transparent(image: Image.Image) -> bool:
    if image.mode not in ("RGBA", "RGBa", "LA", "La", "PA") and "transparency" not in image.info:
        return False
    if image.mode.startswith("I"):
        return False
    return int(np.asarray(image.convert("RGBA").getchannel("A")).min()) < 255


def _resized(opened: Image.Image, size: tuple[int, int]) -> Tensor:
    refuse_unscaled(opened)
    image, shape = upright(opened), (size[1], size[0])
    if image.mode.startswith("I"):  # Pillow would clip these to white on the way to RGB
        values = np.asarray(image).astype(np.float32) / 65535
        grey = Image.fromarray(values).resize(shape, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(grey)).clamp(0, 1).expand(3, -1, -1).contiguous()
    if is_transparent(opened):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    pixels = image.convert("RGB").resize(shape, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255


def reading_error(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return (
        "it is in no format that Pillow reads"
        if isinstance(error, UnidentifiedImageError)
        else f"{text or type(error).__name__}"
    )
