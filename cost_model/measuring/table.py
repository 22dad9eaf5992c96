"""The latency table: one CSV file a device, one row a measurement, safe against a run that is killed while it writes.

A row ends with the CRC-32 of all before it, so that a damaged row is refused and never read as another latency. Rows
are only ever appended; a whole row may be taken out by hand, but not edited. Several rows of one operation on one
machine are repeated measurements, whose median counts.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from jetvit.cost_model.files.lock import lock_file
from jetvit.cost_model.files.whole_file import refuse_full_disk
from jetvit.cost_model.measuring.measurement import Machine, Measurement
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.timing import Latency
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted

log = logging.getLogger(__name__)

SCHEMA = "2"


_MACHINE = tuple(field.name for field in fields(Machine))
_OPERATION = tuple(field.name for field in fields(Operation))
_LATENCY = ("median_ms", "q25_ms", "q75_ms")
COLUMNS = ("schema", *_MACHINE, *_OPERATION, "config", *_LATENCY, "reps", "time", "crc32")
# Tables of schema 1 are older than feature maps other than "relu". They are read, and go on, as they are.
_COLUMNS = {SCHEMA: COLUMNS, "1": tuple(name for name in COLUMNS if name != "feature_map")}
_SCHEMAS = {",".join(columns): schema for schema, columns in _COLUMNS.items()}
_HEADER = ",".join(COLUMNS)


def read_table(path: str | os.PathLike[str]) -> list[Measurement]:
    """All rows of a table, the oldest first.

    Raises InputError, with the file and the line, for anything but whole and undamaged rows of one device: a file that
    is cut off, edited, of another schema, with other columns, an impossible latency or an unknown op.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"no latency table {path}", do="make one: jetvit measure") from None
    except OSError as error:
        raise InputError(f"cannot read the latency table {path}", why=error.strerror or str(error)) from error
    return _parse(path, content)


def checksum(text: str) -> str:
    """The CRC-32 of the UTF-8 text, eight hexadecimal digits."""
    return f"{zlib.crc32(text.encode()):08x}"


class TableWriter:
    """Appends to the table of one machine, and makes the file where there is none.

    Each row is on the disk when `append` returns. An unfinished last line, which a killed run leaves, is cut off with a
    warning. One writer at a time has the file.

    Raises InputError for a file that `read_table` refuses for another reason, one of another device, one that another
    run writes to, or a path that cannot be written; such a file stays as it is.
    """

    def __init__(self, path: str | os.PathLike[str], machine: Machine):
        self.path, self.machine = Path(path), machine
        if not self.path.absolute().parent.is_dir():
            raise InputError(
                f"cannot write {self.path}",
                why=f"the folder {self.path.absolute().parent} does not exist",
                do=f"create it first: mkdir -p {self.path.parent}",
            )
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"cannot write {self.path}", why="it is no regular file", do="give the table another name")
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            raise InputError(f"cannot write {self.path}", why=error.strerror or str(error)) from error
        try:
            advice = "wait for that run: two at a time would also disturb each other's latencies"
            lock_file(self._file, self.path, advice)
            self._schema = SCHEMA
            self.measurements = self._take_up()
        except BaseException:
            os.close(self._file)
            raise
        self._counts = Counter(measurement.key for measurement in self.measurements)

    def count(self, operation: Operation) -> int:
        """How many rows of the operation the table has, of this very machine with its versions."""
        return self._counts[self.machine, operation]

    def append(self, measurement: Measurement) -> None:
        """Add a row and see it to the disk.

        Raises ValueError for a measurement of another machine, InputError for one that the table has no column for.
        """
        if measurement.machine != self.machine:
            raise ValueError(f"a measurement of {measurement.machine}; this table is open for {self.machine}")
        if self._schema == "1" and measurement.operation.feature_map not in ("", "relu"):
            raise InputError(
                f"{self.path} has no column feature_map",
                why=f"it is of schema 1, and {measurement.operation} is to be written",
                do="give the new measurements a file of their own (-o FILE)",
            )
        with refuse_full_disk(self.path, "free space; the same command then resumes"):
            self._write(_row(measurement, self._schema))
        self.measurements.append(measurement)
        self._counts[measurement.key] += 1

    def close(self) -> None:
        """Let go of the file. A second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _take_up(self) -> list[Measurement]:
        """What is in the file already; then every line of it is whole."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        rest = content[len(whole) :]
        if not whole:
            if not f"{_HEADER}\n".encode().startswith(rest):
                _refuse(self.path, 1, "it does not name the columns of a latency table")
            os.ftruncate(self._file, 0)
            self._write(_HEADER)
            self._sync_folder()
            return []
        found = _parse(self.path, whole)  # refuses before anything is cut off
        self._schema = _SCHEMAS[whole.partition(b"\n")[0].decode()]
        if found and (found[0].machine.device, found[0].machine.multiprocessors) != _device(self.machine):
            raise InputError(
                f"{self.path} is the table of another device",
                why=f"it holds {found[0].machine}; this is {self.machine}",
                do="give each device a file of its own (-o FILE)",
            )
        if rest:
            log.warning("%s: the last line was not finished, and is cut off", self.path)
            os.ftruncate(self._file, len(whole))
            os.fsync(self._file)
        return found

    def _write(self, line: str) -> None:
        """One line, or nothing of it where that fails."""
        before = os.fstat(self._file).st_size
        left = f"{line}\n".encode()
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._file, before)
            raise

    def _sync_folder(self) -> None:
        """See the new file's name to the disk, where the system can."""
        with suppress(OSError):
            folder = os.open(self.path.absolute().parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _row(measurement: Measurement, schema: str) -> str:
    latency = measurement.latency
    values = {
        "schema": schema,
        **{name: str(getattr(measurement.machine, name)) for name in _MACHINE},
        **measurement.operation.to_row(),
        "config": measurement.config,
        **{name: repr(float(getattr(latency, name))) for name in _LATENCY},
        "reps": str(latency.reps),
        "time": measurement.time,
    }
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([values[name] for name in _COLUMNS[schema][:-1]])
    return f"{text.getvalue()},{checksum(text.getvalue())}"


def _parse(path: Path, content: bytes) -> list[Measurement]:
    lines = content.split(b"\n")
    schema = _SCHEMAS.get(lines[0].decode(errors="replace"))
    if schema is None:
        _refuse(path, 1, "it does not name the columns of a table that this version of jetvit reads")
    if lines[-1]:
        _refuse(path, len(lines), "it is not finished", "`jetvit measure -o` of this file cuts it off and goes on")
    found: list[Measurement] = []
    for number, line in enumerate(lines[1:-1], 2):
        try:
            measurement = _measurement(line.decode(), schema)
            if found and _device(found[0].machine) != _device(measurement.machine):
                raise ValueError(f"it is of {measurement.machine}, and the first row of {found[0].machine}")
        except (ValueError, csv.Error) as error:  # a UnicodeDecodeError is a ValueError
            _refuse(path, number, str(error))
        found.append(measurement)
    return found


def _measurement(line: str, schema: str) -> Measurement:
    """The meaning of a row. Raises ValueError; the likeliest reasons come before the checksum, for they say more."""
    cells = next(csv.reader([line], strict=True), [])
    columns = _COLUMNS[schema]
    if len(cells) != len(columns):
        raise ValueError(f"it has {counted(len(cells), 'column')} instead of {len(columns)}")
    row = {"feature_map": ""} | dict(zip(columns, cells, strict=True))
    if row["schema"] != schema:
        raise ValueError(f"its schema is {row['schema']!r}; the columns are those of {schema}")
    versions = {name: row[name] for name in _MACHINE[2:]}
    machine = Machine(row["device"], _whole(row, "multiprocessors"), **versions)
    median_ms, q25_ms, q75_ms = (_number(row, name) for name in _LATENCY)
    latency = Latency(median_ms, q25_ms, q75_ms, _whole(row, "reps"))
    measurement = Measurement(machine, Operation.from_row(row), latency, row["config"], row["time"])
    if row["crc32"] != checksum(line.rpartition(",")[0]):
        raise ValueError("its checksum does not fit: it was damaged or edited")
    return measurement


def _whole(row: dict[str, str], name: str) -> int:
    try:
        return int(row[name])
    except ValueError:
        raise ValueError(f"{name} is {row[name]!r}, which is no whole number") from None


def _number(row: dict[str, str], name: str) -> float:
    try:
        return float(row[name])
    except ValueError:
        raise ValueError(f"{name} is {row[name]!r}, which is no number") from None


def _device(machine: Machine) -> tuple[str, int]:
    return machine.device, machine.multiprocessors


def _refuse(path: Path, line: int, why: str, do: str = "") -> NoReturn:
    what, advice = ("header", "") if line == 1 else ("row", "take the line out, or ")
    raise InputError(
        f"{path}, line {line}: no {what} of a latency table", why=why, do=do or f"{advice}measure into a new file"
    )
