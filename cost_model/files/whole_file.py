"""Files that appear as a whole: a crash, a failure or a full disk leaves the old one or the new one."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jetvit.patterns.errors import DiskFullError
from jetvit.patterns.resources import disk_full

FREE_SPACE = "free space, or write to another disk; nothing was left half-written"


@contextmanager
def refuse_full_disk(path: str | os.PathLike[str], do: str = FREE_SPACE) -> Iterator[None]:
    """Name the file where a write fails because the disk, a quota or a limit on file sizes is full.

    Args:
        path: what is written.
        do: what the user can do.
    Raises:
        DiskFullError: the disk is full.
    """
    try:
        yield
    except Exception as error:  # numpy and torch have classes of their own for it
        if isinstance(error, DiskFullError):  # of a temporary file on the way to `path`
            why = error.why
        elif message := disk_full(error):
            why = f"the disk is full ({message})"
        else:
            raise
        raise DiskFullError(f"cannot write {os.fspath(path)}", why=why, do=do) from error


@contextmanager
def stream_for_cpp(path: Path) -> Iterator[Any]:
    """Open a new file for torch's C++ writer of archives, which ends the process if it cannot write to a file itself.

    The first error of a write is kept and raised when the block ends: C++ cannot pass it on.
    """
    with path.open("wb") as file:
        stream = _Stream(file)
        yield stream
        if stream.error is not None:
            raise stream.error


class _Stream(io.RawIOBase):
    def __init__(self, file: Any):
        self.file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        self._keep_error(self.file.write, data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._keep_error(self.file.seek, offset, whence) or 0

    def _keep_error(self, call: Callable[..., int], *args: Any) -> int | None:
        if self.error is None:
            try:
                return call(*args)
            except BaseException as error:  # an interrupt, too, would end the process in C++
                self.error = error
        return None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


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
