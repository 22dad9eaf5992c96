"""Say what a file holds, whatever its name says, without running or unpacking any of it.

A model or weight file comes from anywhere: it may be truncated, a web page that was saved in its place, or a pickle
that runs a program. Each needs another advice.
"""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jetvit.patterns.errors import InputError

TRUNCATED = "download or copy it again: it ends too early, as after an interrupted download"
# Modules whose functions the weights of a model have no use for, and an attacker has.
_DANGEROUS = {
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "importlib", "runpy", "pty", "ctypes", "webbrowser",
    "urllib", "http", "requests", "pip", "timeit", "code", "pdb", "bdb", "commands", "pickle", "marshal",
}  # fmt: skip
_DANGEROUS_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "globals", "breakpoint", "execfile", "apply"}
_RATIO = 100  # torch stores tensors as they are; what unpacks to so many times its size holds none
_OPCODES = 1_000_000
_PICKLES = 5  # in a file of torch 1.5 and before: a magic number, versions, and only then the weights


def refuse_unsafe(path: Path) -> None:
    """Refuse a file that does harm when it is read or unpacked.

    Raises:
        InputError: the file is, or holds, a pickle that calls a function of the system; or it is an archive whose
            entries unpack to more than those of any model do, or lie outside its folder.
    """
    with path.open("rb") as stream:
        start = stream.read(2)
        stream.seek(0)
        called = next(_dangerous(stream), None) if start[:1] == b"\x80" or start[:1] in b"c(" else None
    fault = ("reading it would run a program", f"it is a pickle that calls {called}") if called else None
    if start == b"PK" and fault is None:
        try:
            fault = _archive_fault(path)
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError):
            return  # no archive that any reader takes
    if fault is not None:
        raise InputError(
            f"{path} is refused: {fault[0]}",
            why=fault[1],
            do="do not open it with other programs; get the model from a source that you trust",
        )


def repair(path: Path, otherwise: str) -> str:
    """Say what to do about a file that cannot be read.

    Args:
        path: the file.
        otherwise: the advice for a file that is neither truncated nor of a known other content.
    """
    with path.open("rb") as stream:
        start = stream.read(512)
    if not start:
        return "download or copy it again: it is empty"
    if is_truncated(path):
        return TRUNCATED
    if start.startswith(b"version https://git-lfs"):
        return "run `git lfs pull`: it is a pointer of Git LFS, and not the file itself"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "download the file itself: this is a web page, such as a login or an error"
    return otherwise


def is_truncated(path: Path) -> bool:
    """Report whether a safetensors file, zip archive, pickle or ONNX model ends too early."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(16)
        if start.startswith(b"PK\x03\x04"):
            return not zipfile.is_zipfile(path)
        if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
            return _pickle_ends_early(stream)
        if start[8:9] == b"{":
            return _safetensors_size(stream, size) > size
        if start[:1] == b"\x08":
            return _protobuf_size(stream, size) > size
    return False


def pickled_names(stream: IO[bytes]) -> Iterator[str]:
    """The functions and classes that the pickles at the start of a stream import, as "module.name".

    The opcodes are read and none is executed. What follows the last pickle ends it.
    """
    for _ in range(_PICKLES):
        strings: list[str] = []
        memo: dict[Any, str] = {}
        try:
            for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if number > _OPCODES:
                    return
                name = opcode.name
                if name in ("GLOBAL", "INST"):
                    yield ".".join(str(argument).split(" ", 1))
                elif name == "STACK_GLOBAL":
                    yield ".".join(strings[-2:])
                elif name == "MEMOIZE":
                    memo[len(memo)] = strings[-1] if strings else ""
                elif "PUT" in name:
                    memo[argument] = strings[-1] if strings else ""
                elif "GET" in name:
                    strings.append(memo.get(argument, ""))
                elif isinstance(argument, str):
                    strings.append(argument)
        except Exception:  # the bytes are anyone's: the parser raises whatever it meets
            return


def _dangerous(stream: IO[bytes]) -> Iterator[str]:
    for name in pickled_names(stream):
        module, _, function = name.partition(".")
        builtin = module in ("builtins", "__builtin__")
        if function in _DANGEROUS_BUILTINS if builtin else module in _DANGEROUS:
            yield name


def _archive_fault(path: Path) -> tuple[str, str] | None:
    """Say what is wrong with a zip archive, and why; None if nothing is."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
        if unpacked > _RATIO * size:
            return "it is a zip bomb", f"its {size} bytes unpack to {unpacked / 1e6:.1f} MB"
        for entry in entries:
            parts = entry.filename.replace("\\", "/").split("/")
            if ".." in parts or parts[0] == "" or ":" in parts[0]:
                return (
                    "it leaves its folder",
                    f"{entry.filename!r} in it lies outside the folder that it is unpacked into",
                )
        for entry in entries:
            if entry.filename.endswith((".pkl", ".pickle", ".pt")):
                with archive.open(entry) as stream:
                    if (called := next(_dangerous(stream), None)) is not None:
                        why = f"its {entry.filename} is a pickle that calls {called}"
                        return "reading it would run a program", why
    return None


def _pickle_ends_early(stream: IO[bytes]) -> bool:
    stream.seek(0)
    try:
        for _ in pickletools.genops(stream):
            pass
    except ValueError as error:  # "pickle exhausted before seeing STOP", "expected 9 bytes …, but only 2 remain"
        return "exhausted" in str(error) or "remain" in str(error) or "not enough data" in str(error)
    except Exception:  # the bytes are anyone's
        return False
    return False


def _safetensors_size(stream: IO[bytes], size: int) -> int:
    """Return how many bytes the header asks for; 0 if there is no header."""
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if length > 100_000_000:  # more than the format allows
        return 0
    if 8 + length > size:
        return 8 + length
    try:
        header = json.loads(stream.read(length))
        return 8 + length + max(each["data_offsets"][1] for name, each in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return 0


def _protobuf_size(stream: IO[bytes], size: int) -> int:
    """Return where the fields of a protobuf message end, beyond the end of a truncated file; 0 if it is no message."""
    stream.seek(0)
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while shift < 64:
            byte = stream.read(1)
            place += 1
            if not byte:
                return 0
            value |= (byte[0] & 0x7F) << shift
            shift += 7
            if byte[0] < 0x80:
                return value
        return 0

    while place < size:
        tag = varint()
        kind, number = tag & 7, tag >> 3
        if not 1 <= number <= 30 or kind not in (0, 2):  # no field of an ONNX model
            return place if place > size else 0
        length = varint()
        if kind == 2:
            place += length
            stream.seek(place)
    return place
