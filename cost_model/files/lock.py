"""A lock on a file or folder that one run at a time writes to."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jetvit.patterns.errors import InputError

try:
    import fcntl
except ImportError:  # a system without it has no lock
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other runs from writing to `path`, which need not exist, while the block runs.

    The lock is a hidden file beside `path`. It goes with the process, however that ends; an old file does not lock.

    Raises:
        InputError: another run has the lock, or the folder above takes no files.
    """
    target = Path(path).resolve()
    descriptor = _acquire(target.with_name(f".{target.name}.lock"), path)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                target.with_name(f".{target.name}.lock").unlink()
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked process may still hold the file open
            os.close(descriptor)


def _acquire(lock: Path, shown: str | os.PathLike[str]) -> int | None:
    """The descriptor of the locked file; None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            why = error.strerror or str(error)
            raise InputError(f"cannot write {os.fspath(shown)}", why=why, where=str(lock.parent)) from error
        try:
            is_locked = lock_file(descriptor, shown, "wait for that run, or name another output")
        except InputError:
            os.close(descriptor)
            raise
        if not is_locked:
            os.close(descriptor)
            with suppress(OSError):
                lock.unlink()
            return None
        with suppress(FileNotFoundError):  # the run before has removed it meanwhile: once more
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        os.close(descriptor)


def lock_file(descriptor: int, shown: str | os.PathLike[str], do: str) -> bool:
    """Lock an open file until it is closed, or the process ends, however that ends.

    Args:
        descriptor: the file.
        shown: what the run writes, for messages.
        do: what to do if another run has the lock.
    Returns:
        Whether it is locked: not every system has locks. A file system without them is warned of.
    Raises:
        InputError: another run has the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"cannot write {os.fspath(shown)}", why="another run writes to it", do=do) from None
    except OSError:
        log.warning("%s cannot be locked: let no other run write to it", os.fspath(shown))
        return False
    return True
