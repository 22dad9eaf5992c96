"""Files that people pass around: outputs appear whole or not at all, `.pt2` programs load without running code."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive.constants import (
    AOTINDUCTOR_DIR,
    CONSTANTS_DIR,
    MODELS_DIR,
    SAMPLE_INPUTS_DIR,
    TENSOR_CONSTANT_FILENAME_PREFIX,
    WEIGHT_FILENAME_PREFIX,
    WEIGHTS_DIR,
)

from jetvit.cost_model.files.file_content import refuse_unsafe, repair
from jetvit.cost_model.files.whole_file import move_together, refuse_full_disk
from jetvit.patterns.errors import DiskFullError, InputError
from jetvit.torch_private import PT2ArchiveReader

CALLABLE = r"[A-Z]\w*|max|min|abs|int|float|bool"  # in a shape expression: sympy's classes, and harmless built-ins
SIZE = r"[a-z]+_?\d+|(int_)?oo|L|math|torch|inf"  # in a shape expression: s0, u1; `L` is the inputs by name
_AGAIN = "write it again with torch.export.save or `jetvit optimize`"
METHODS = {
    *("size", "stride", "storage_offset", "item", "isnan", "ceil", "floor", "trunc", "sqrt"),
    *("sym_float", "sym_int", "sym_max", "sym_min", "sym_not", "sym_sqrt"),  # of torch, in guards on resampled grids
}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a fresh path beside `path`, with its suffix, and rename it to `path` when the block ends well.

    For writers that take a file name (`torch.export.save`, `safetensors.torch.save_file`). A block that raises leaves
    the old file, or none. A symbolic link is followed: the file behind it is replaced.

    Raises:
        InputError: the parent folder is missing or closed to us, `path` exists and is no regular file, or the disk is
            full.
    """
    target = writable(path)
    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    try:
        with refuse_full_disk(path):
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())  # else a crash soon after the rename could leave an empty file
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a fresh path of the same name in a hidden folder beside `path`; what is there takes its place at the end.

    For writers that keep the name of a file in it, or that put other files beside it: these are renamed first. A block
    that raises leaves the old files, or none, and so does one of them that cannot be renamed. A symbolic link is
    followed: the file behind it is replaced.

    Raises:
        InputError: as `atomic_path`.
    """
    target = writable(path)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
    except OSError as error:  # a place that takes no folders, whatever its permissions say
        raise InputError(
            f"cannot write {path}", why=error.strerror or str(error), do="choose another folder"
        ) from error
    try:
        with refuse_full_disk(path):
            yield folder / target.name
            others = sorted(each for each in folder.iterdir() if each.name != target.name)
            move_together([*others, folder / target.name], target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open `path` for writing, text in UTF-8 (`mode="w"`) or bytes (`mode="wb"`); it appears when the block ends well.

    Raises:
        InputError: as `atomic_path`.
    """
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    with atomic_path(path) as temporary, temporary.open(mode, encoding=encoding, newline=newline) as stream:
        yield stream
        stream.flush()


def writable(path: str | os.PathLike[str]) -> Path:
    """The file behind `path`, which may be there or not, in a folder that takes new files.

    Raises:
        InputError: as `atomic_path`.
    """
    shown, target = Path(path), Path(path).resolve()
    if not target.parent.is_dir():
        raise InputError(
            f"cannot write {shown}",
            why=f"the folder {target.parent} does not exist",
            do=f"create it first: mkdir -p {target.parent}",
        )
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "no regular file"
        raise InputError(f"cannot write {shown}", why=f"it is {kind}", do="give the output the name of a new file")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(
            f"cannot write {shown}",
            why=f"the folder {target.parent} is not writable",
            do="choose another folder, or change its permissions",
        )
    return target


def require_space(path: Path, size: int) -> None:
    """Refuse to write a file of at least `size` bytes to a disk with less free space.

    Raises:
        DiskFullError: the disk has less.
    """
    free = shutil.disk_usage(path.resolve().parent).free
    if free < size:
        raise DiskFullError(
            f"cannot write {path}",
            why=f"the file takes {size / 1e6:.1f} MB or more, and its disk has {free / 1e6:.1f} MB left",
            do="free space, or write to another disk",
        )


def load_exported(path: str | os.PathLike[str]) -> ExportedProgram:
    """Load the exported program in a `.pt2` file; an archive whose loading or first call would run code is refused.

    `torch.export.load` unpickles what an archive marks as pickled, sympy evaluates its shape expressions, and torch
    compiles its guards and names as Python. So pickled objects and compiled code (an AOTInductor package) are refused,
    and so are expressions, guards and names that are more than arithmetic on sizes and plain words.

    Raises:
        InputError: no such file, no whole `.pt2` archive, one that would run code, or one that torch cannot read.
    """
    path = Path(path)
    if not path.is_file():
        what = f"{path} is a folder" if path.is_dir() else f"no file {path}"
        raise InputError(what, do="check the path of the .pt2 file")
    refuse_unsafe(path)
    with path.open("rb") as stream:
        start = stream.read(2)
    if start != b"PK":
        onnx = start[:1] == b"\x08"  # the first field of a model, its IR version
        raise InputError(
            f"{path} is no program of torch.export",
            why="it begins as an ONNX model does" if onnx else "it is empty" if not start else "it is no zip archive",
            do="call it .onnx if it is such a model" if onnx else repair(path, _AGAIN),
        )
    try:
        reader = PT2ArchiveReader(str(path))
        names = reader.get_file_names()
    except (RuntimeError, AssertionError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is no program of torch.export",
            why=_first_line(error),
            do=repair(path, _AGAIN),
        ) from error
    reason = _runs_code(path, reader, names)
    if reason:
        compiled = any(name.startswith(AOTINDUCTOR_DIR) for name in names)
        raise InputError(
            f"{path} is refused: loading it would run code from the file",
            why=reason,
            do="give the model, or the .pt2 file, that it was compiled from; to run it, if you trust who made it, "
            "jetvit.load(path), or torch._inductor.aoti_load_package(path) with torch alone"
            if compiled
            else "export the model again from its source: plain tensors and operators need no pickled objects",
        )
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises whatever its parser meets: KeyError, SerializeError, AssertionError, …
        raise InputError(
            f"torch.export could not load {path}",
            why=f"{type(error).__name__}: {_first_line(error)}",
            do=f"write it again with this torch ({torch.__version__}), and import what registers its custom operators",
        ) from error


def _runs_code(path: Path, reader: PT2ArchiveReader, names: list[str]) -> str:
    """Why loading the archive would run code, or "".

    The records are read with torch's own reader, so that what is checked is what is loaded.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if "version" in archive.namelist():
                return "it is of the old format (torch 2.7 and before), whose tensors are pickled"
        for name in names:
            if name.startswith(AOTINDUCTOR_DIR):
                return "it is an AOTInductor package: compiled code, without the graph that it was made from"
            if name.startswith((WEIGHTS_DIR, CONSTANTS_DIR)) and name.endswith(".pt"):
                return f"{name} is a pickled file of an old format"
            if name.startswith((WEIGHTS_DIR, CONSTANTS_DIR)) and name.endswith(".json"):
                for fqn, payload in json.loads(reader.read_bytes(name))["config"].items():
                    tensors = (WEIGHT_FILENAME_PREFIX, TENSOR_CONSTANT_FILENAME_PREFIX)
                    if payload["use_pickle"] or not payload["path_name"].startswith(tensors):
                        return f"{fqn!r} is stored as a pickled object"
            elif name.startswith(SAMPLE_INPUTS_DIR):
                example = reader.read_bytes(name)
                if example:
                    torch.load(io.BytesIO(example), weights_only=True)
            elif name.startswith(MODELS_DIR):
                for key, text in _strings(json.loads(reader.read_bytes(name))):
                    if key in CHECKED and not CHECKED[key](text):
                        return f"its {key} {text[:60]!r} is more than arithmetic on sizes and plain words"
    except Exception as error:  # the bytes are anyone's: a record that cannot be checked is not loaded
        return f"its records could not be checked ({type(error).__name__}: {_first_line(error)})"
    return ""


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in JSON data, with the nearest key above it."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, str):
        yield key, value


def _is_arithmetic(text: str) -> bool:
    """Report whether `text` is made of numbers, sizes (s0, `L['x'].size()[2]`) and sympy classes (Max, FloorDiv) alone.

    It is evaluated with Python's built-in functions at hand; of these only max, min and the like may be called. A
    string (the name in `Symbol('s0', integer=True)`) must be a plain word or number, for sympy evaluates it again.
    """
    allowed = (
        *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name, ast.Load, ast.Constant),
        *(ast.Attribute, ast.Subscript, ast.keyword, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
    )
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if not isinstance(node, allowed):
            return False
        if isinstance(node, ast.Attribute):
            plain = node.attr in METHODS
        elif isinstance(node, ast.Constant):
            plain = bool(re.fullmatch(r"\w+|\d*\.?\d*(e[+-]?\d+)?", str(node.value).lstrip("-"), re.ASCII))
        elif isinstance(node, ast.Name):
            known = CALLABLE if id(node) in called else SIZE
            plain = bool(re.fullmatch(known, node.id, re.ASCII))
        else:
            continue
        if not plain:
            return False
    return True


def _is_word(text: str) -> bool:
    return re.fullmatch(r"[\w.]*", text) is not None


def _has_plain_keys(spec: str) -> bool:
    """Report whether the keys in a serialised tree of inputs have no quote, bracket or backslash."""
    return re.fullmatch(r"""(?:[\w\s\[\]{}",:./-]|\\")*""", spec) is not None


CHECKED = {  # the strings of a program that torch hands to sympy or to Python's compiler
    "expr_str": _is_arithmetic,
    "guards_code": _is_arithmetic,
    "name": _is_word,
    "forward_arg_names": _is_word,
    "in_spec": _has_plain_keys,
}


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
