"""The table that the kernel benchmark writes: rows are appended as they come, and a later run goes on from them."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jetvit.kernels

# Our operator and its ATen reference, as rows name them; the other implementations are the rivals.
OURS, REFERENCE = "jetvit", "reference"
# One measurement is told from another by these. `code` stands for the kernels as they are, so that a changed kernel is
# measured anew; `run` is not among them.
KEY = ("device", "torch", "triton", "code", "model", "size", "mixer", "implementation", "dtype")
COLUMNS = (
    *("model", "size", "mixer", "implementation", "status", "reason"),
    *("median_ms", "q25_ms", "q75_ms", "reps", "timing", "launched_ms"),
    *("floor_ms", "times_floor", "bytes", "flops", "copy_tb_s", "gemm_tflop_s"),
    *("max_error", "difference"),
    *("num_heads", "head_dim", "grid", "extra_tokens", "rope", "batch", "dtype"),
    *("dry", "device", "torch", "cuda", "triton", "jetvit", "code", "threads", "run", "time", "command"),
)


class Table:
    """A CSV file of rows with the same columns, safe against a run that is killed while it writes."""

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str]):
        self.path, self.columns, self._key = path, columns, key
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(",".join(columns) + "\n", encoding="utf-8")
        _cut_unfinished_row(path)
        self._known = {self._key_of(row) for row in self.rows()}

    def rows(self) -> list[dict[str, str]]:
        """All rows, as text."""
        return read_rows(self.path)

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether there is a row of this key; other columns may be missing."""
        return self._key_of(row) in self._known

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows and see them to the disk."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.columns, restval="", lineterminator="\n")
            for row in rows:
                writer.writerow(row)
                self._known.add(self._key_of(row))
            file.flush()
            os.fsync(file.fileno())

    def drop(self, unwanted: Callable[[Mapping[str, str]], bool]) -> None:
        """Take rows out of the file."""
        kept = [row for row in self.rows() if not unwanted(row)]
        beside = self.path.with_suffix(".new")
        beside.unlink(missing_ok=True)
        Table(beside, self.columns, self._key).append(kept)
        beside.replace(self.path)
        self._known = {self._key_of(row) for row in kept}

    def _key_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self._key)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def newest(rows: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The rows that were measured on one device with one code and one set of versions, those of the last row."""
    everything = list(rows)
    if not everything:
        return []
    same = [name for name in ("dry", "device", "torch", "triton", "code") if name in everything[-1]]
    return [row for row in everything if all(row[name] == everything[-1][name] for name in same)]


def code_of_kernels() -> str:
    """Eight digits that change with any source file of the kernels."""
    return code_of(jetvit.kernels)


def code_of(*packages: ModuleType) -> str:
    """Eight digits that change with any source file of these packages."""
    digest = hashlib.sha256()
    for package in packages:
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def _cut_unfinished_row(path: Path) -> None:
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
