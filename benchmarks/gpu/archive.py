"""Pack the results of a campaign into one file, and unpack such a file safely.

A machine that is lent may return few files. The archive holds all results but the caches and temporary files.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CACHES = "caches"
"""The folder of compiled code in the folder of results, which no archive holds."""
_SUFFIXES = (".csv", ".json", ".jsonl", ".left", ".log", ".md", ".npz", ".png", ".safetensors")
_LEFT_OUT = (CACHES, "search", "search-dry")  # search: checkpoints, which take too much room
_LOG_BYTES = 50_000  # the end of a log that is kept
_MOST_FILES, _MOST_BYTES = 2000, 256 * 2**20  # of an archive that is unpacked


class UnsafeArchive(Exception):
    """An archive holds what no campaign writes; nothing of it was unpacked."""


def write_archive(folder: Path, archive: Path) -> None:
    """Write all results of a folder as .tar.gz, beside its place first, so that a killed run leaves a usable file."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    staged = archive.with_name(f".{archive.name}.{os.getpid()}")
    try:
        with tarfile.open(staged, "w:gz", compresslevel=6) as tar:
            for path in _results(folder):
                content = path.read_bytes()
                if path.suffix == ".log":
                    content = content[-_LOG_BYTES:]
                member = tarfile.TarInfo(path.relative_to(folder).as_posix())
                member.size, member.mtime = len(content), int(path.stat().st_mtime)
                tar.addfile(member, io.BytesIO(content))
        staged.replace(archive)
    finally:
        staged.unlink(missing_ok=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into an empty folder. Raises UnsafeArchive before anything is written, OSError, TarError."""
    with tarfile.open(archive, "r:gz") as tar:
        members = []
        for member in tar:
            members.append(member)
            _refuse_unsafe(member)
            if len(members) > _MOST_FILES or sum(each.size for each in members) > _MOST_BYTES:
                raise UnsafeArchive(f"{archive} is too large for the results of a campaign")
        tar.extractall(folder, members=members, filter="data")


def _results(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if hidden or inside.parts[0] in _LEFT_OUT or path.suffix not in _SUFFIXES:
            continue
        if path.is_file() and not path.is_symlink():
            yield path


def _refuse_unsafe(member: tarfile.TarInfo) -> None:
    place = PurePosixPath(member.name)
    if not member.isreg():
        raise UnsafeArchive(f"{member.name} is no plain file")
    if place.is_absolute() or ".." in place.parts or any(part.startswith(".") for part in place.parts):
        raise UnsafeArchive(f"{member.name} leads out of the folder, or is hidden")
    if place.suffix not in _SUFFIXES:
        raise UnsafeArchive(f"{member.name} is of a kind that no campaign writes")
