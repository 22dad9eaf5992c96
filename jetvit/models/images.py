"""Images for calibration, checks and demos: folders of image files, sizes, and drawn stand-ins."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted
from jetvit.search.data.splits import evenly_spaced

log = logging.getLogger("jetvit.models.images")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"}  # of these, a Pillow may lack the last three
)
MAX_PIXELS = 10**9  # of one image: 12 GB in float32
LISTED = 20  # files named in one message
# Pillow's ways to say "broken", with those of its parsers that it lets through.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error),
    Image.DecompressionBombError,
)
_PART = 256  # files that are decoded before the next are begun
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
"""What makes an image upright, by its EXIF orientation."""


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a folder, each of which was decoded once.

    Attributes:
        path: the folder.
        files: the readable images, in the order of their paths.
        left_out: how many other images of the folder a limit left out.
    """

    path: Path
    files: tuple[Path, ...]
    left_out: int = 0

    @classmethod
    def find(
        cls,
        path: str | Path,
        limit: int | None = None,
        *,
        strict: bool = False,
        also_check: Callable[[Path, Look], str] | None = None,
    ) -> ImageFiles:
        """Search a folder for images, and decode those that will be used.

        Unreadable images are skipped with a warning that counts and names them; with a `limit`, other images of the
        folder take their places. Animations and transparent images are named in a warning.

        Args:
            path: searched with its subfolders and linked folders; names that start with a dot are ignored.
            limit: at most so many images, evenly spaced.
            strict: refuse unreadable images instead of skipping them.
            also_check: returns why a readable image cannot be used, or "".
        Raises:
            InputError: no such folder, a link that leads back to itself, no readable image, or a limit below 1; with
                `strict` also an unreadable image.
        """
        path = Path(path)
        if limit is not None and limit < 1:
            raise InputError(f"a limit of {limit} images leaves none", do="give a limit of 1 or more, or none")
        if not path.is_dir():
            raise InputError(f"no image folder {path}", why=_why_no_folder(path), do="give the folder of the images")
        found = _image_files(path)
        if not found:
            raise InputError(
                f"no image in {path}",
                why=f"no file in it or its subfolders ends in {', '.join(sorted(SUFFIXES))}",
                do="give the folder of the images",
            )
        files, looks = found, dict[Path, Look]()
        while True:
            chosen = [files[place] for place in evenly_spaced(len(files), limit or len(files))]
            looks |= _look_at([file for file in chosen if file not in looks], also_check)
            faults = {file: look.fault for file, look in looks.items() if look.fault}
            if faults and strict:
                raise InputError(
                    f"{counted(len(faults), 'image')} cannot be read",
                    why=_listed(path, faults),
                    where=str(path),
                    do="repair or remove them, or leave --strict out to skip them",
                )
            if not any(file in faults for file in chosen):
                break
            files = [file for file in files if file not in faults]
            if not files:
                raise InputError(
                    f"no image in {path} can be read",
                    why=_listed(path, faults),
                    do="give a folder of whole image files",
                )
        if faults:
            log.warning("skipped %s that cannot be read: %s", counted(len(faults), "image"), _listed(path, faults))
        if animated := {file: f"{look.frames} frames" for file in chosen if (look := looks[file]).frames > 1}:
            log.warning(
                "only the first frame of %s is read: %s", counted(len(animated), "image"), _listed(path, animated)
            )
        if transparent := {file: "" for file in chosen if looks[file].alpha}:
            log.warning(
                "%s with transparency, drawn on white: %s",
                counted(len(transparent), "image"),
                _listed(path, transparent),
            )
        if left_out := len(files) - len(chosen):
            log.info("%s of %s not read: the limit is %d", left_out, counted(len(files), "image"), len(chosen))
        return cls(path, tuple(chosen), left_out)


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
            f"{file} is no image that can be read", why=_reason(error), do="repair the file, or remove it"
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


@dataclass(frozen=True)
class Look:
    """Facts about an image file that was decoded.

    Attributes:
        fault: why it cannot be used, or "".
        frames: how many the file holds.
        alpha: whether a pixel is transparent.
        orientation: of EXIF, 1 to 8; 1 is upright.
        size: (width, height) once it is upright.
    """

    fault: str = ""
    frames: int = 1
    alpha: bool = False
    orientation: int = 1
    size: tuple[int, int] = (0, 0)


def _look_at(files: Sequence[Path], also_check: Callable[[Path, Look], str] | None) -> dict[Path, Look]:
    """Decode files, several at a time: a search may read a hundred thousand."""

    def look_at(file: Path) -> Look:
        look = _look(file)
        return look if look.fault or also_check is None else replace(look, fault=also_check(file, look))

    with ThreadPoolExecutor() as pool:
        parts = [files[start : start + _PART] for start in range(0, len(files), _PART)]  # so that Ctrl-C ends it soon
        return {file: look for part in parts for file, look in zip(part, pool.map(look_at, part), strict=True)}


def _look(file: Path) -> Look:
    try:
        with Image.open(file) as opened:
            # A phone's MPO file holds other views of the same picture, which are no frames.
            frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
            opened.seek(0)
            opened.load()
            _refuse_unscaled(opened)
            orientation, (width, height) = orientation_of(opened), opened.size
            size = (height, width) if orientation >= 5 else (width, height)
            return Look(frames=frames, alpha=_is_transparent(opened), orientation=orientation, size=size)
    except BROKEN as error:
        return Look(fault=_reason(error))


def _refuse_unscaled(image: Image.Image) -> None:
    """Raise ValueError for values whose range is unknown. A 16-bit PNG or PGM may be decoded as mode "I"."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(
            f"its mode is {image.mode}, whose largest value is unknown; convert it to 8 or 16 bits a channel"
        )


def _is_transparent(image: Image.Image) -> bool:
    if image.mode not in ("RGBA", "RGBa", "LA", "La", "PA") and "transparency" not in image.info:
        return False
    if image.mode.startswith("I"):
        return False
    return int(np.asarray(image.convert("RGBA").getchannel("A")).min()) < 255


def _resized(opened: Image.Image, size: tuple[int, int]) -> Tensor:
    _refuse_unscaled(opened)
    image, shape = upright(opened), (size[1], size[0])
    if image.mode.startswith("I"):  # Pillow would clip these to white on the way to RGB
        values = np.asarray(image).astype(np.float32) / 65535
        grey = Image.fromarray(values).resize(shape, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(grey)).clamp(0, 1).expand(3, -1, -1).contiguous()
    if _is_transparent(opened):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    pixels = image.convert("RGB").resize(shape, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255


def _image_files(folder: Path) -> list[Path]:
    """The image files under a folder, sorted; links to folders are followed.

    Raises:
        InputError: a link leads to a folder that it lies in, or to itself.
    """
    found: list[Path] = []

    def search(path: Path, above: frozenset[Path]) -> None:
        real = path.resolve()
        if real in above:
            raise InputError(
                f"the folder {folder} has no end",
                why=f"{path} is a link to {real}, which it lies in",
                where=str(path),
                do="remove the link, or give a folder without it",
            )
        for entry in sorted(path.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                _refuse_loop(entry)
            if entry.is_dir():
                search(entry, above | {real})
            elif entry.suffix.lower() in SUFFIXES and entry.is_file():
                found.append(entry)

    search(folder, frozenset())
    return sorted(found)


def _refuse_loop(link: Path) -> None:
    try:
        link.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(
                f"the link {link} leads back to itself", why=error.strerror or "", do="remove the link"
            ) from error


def _why_no_folder(path: Path) -> str:
    if path.is_file():
        return "it is a file"
    if path.is_symlink():
        _refuse_loop(path)
        return f"it is a link to {path.readlink()}, which does not exist"
    return "it does not exist"


def _listed(folder: Path, facts: Mapping[Path, str]) -> str:
    """The files with what is to be said of each, the first of them."""
    names = [f"{file.relative_to(folder)}" + (f" ({fact})" if fact else "") for file, fact in sorted(facts.items())]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return (
        "it is in no format that Pillow reads"
        if isinstance(error, UnidentifiedImageError)
        else f"{text or type(error).__name__}"
    )
