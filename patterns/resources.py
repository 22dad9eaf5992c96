"""Recognise errors that mean that a disk or a memory is full, whichever library raised them."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

_DISK_ERRNO = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
# What numpy, compilers and torch's writer of archives say, which keep no errno.
_DISK_TEXT = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|\d+ requested and \d+ written|"
    r"PytorchStreamWriter failed writing"
)
_MEMORY_TEXT = re.compile(
    r"you tried to allocate|can't allocate memory|Cannot allocate memory|CUDA out of memory|std::bad_alloc|"
    r"not enough memory"
)


def disk_full(error: BaseException) -> str:
    """The system's message if an error, or its cause, means that a disk, a quota or a file is full; else ""."""
    message = ""
    for each in _chain(error):  # the first cause says it best
        if isinstance(each, OSError) and each.errno in _DISK_ERRNO:
            message = f"{each.strerror}: {each.filename}" if each.filename else str(each.strerror)
        elif found := _DISK_TEXT.search(str(each)):
            message = found[0]
    return message


def out_of_memory(error: BaseException) -> str:
    """The first line of an error that means that memory ran out, of the error or one that caused it; else ""."""
    message = ""
    for each in _chain(error):
        text = str(each)
        if (
            isinstance(each, MemoryError)
            or type(each).__name__ == "OutOfMemoryError"  # of torch, for every kind of accelerator
            or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
            or _MEMORY_TEXT.search(text)
        ):
            message = next((line.strip() for line in text.splitlines() if line.strip()), "memory is used up")
    return message


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what caused it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
