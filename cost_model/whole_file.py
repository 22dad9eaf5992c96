"""Files that appear as a whole: a crash or a failure leaves the old one or the new one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place, see it to the disk and rename it. Raises OSError."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with staged.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def move_together(files: Sequence[Path], folder: Path) -> None:
    """See files to the disk and move them into a folder under their names, the one that the others belong to last.

    They replace what is there. If one cannot be moved, what the others replaced is there again. Raises OSError.
    """
    for file in files:
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())  # else a crash soon after the rename could leave an empty file
    moved: list[tuple[Path, Path]] = []
    try:
        for file in files[:-1]:
            place, old = folder / file.name, file.with_name(f".{file.name}.old")
            if place.exists():
                place.replace(old)
            moved.append((place, old))
            file.replace(place)
        files[-1].replace(folder / files[-1].name)
    except OSError:
        for place, old in moved:
            place.unlink(missing_ok=True)
            if old.exists():
                old.replace(place)
        raise
