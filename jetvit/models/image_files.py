"""Find the image files of a folder, and look at each before a model is loaded."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from jetvit.models.image_reading import (
    BROKEN,
    is_transparent,
    orientation_of,
    reading_error,
    refuse_unscaled,
)
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted
from jetvit.search.data.splits import evenly_spaced

log = logging.getLogger("jetvit.models.image_files")

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".apng", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"}  # of these, a Pillow may lack the last three
)
LISTED = 20  # files named in one message
_PART = 256  # files that are decoded before the next are begun


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
            refuse_unscaled(opened)
            orientation, (width, height) = orientation_of(opened), opened.size
            size = (height, width) if orientation >= 5 else (width, height)
            return Look(frames=frames, alpha=is_transparent(opened), orientation=orientation, size=size)
    except BROKEN as error:
        return Look(fault=reading_error(error))


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
