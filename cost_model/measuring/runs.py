"""Whole models that were measured end to end: what their graphs run, and how long they took. A file of JSON lines.

They tell what the latencies of single operations do not: how these add up. A line ends with the CRC-32 of the rest.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from jetvit.cost_model.files.whole_file import write_whole
from jetvit.cost_model.measuring.graph_operations import GraphOperations
from jetvit.cost_model.measuring.measurement import Machine, refuse_latency
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.table import checksum
from jetvit.cost_model.measuring.timing import Latency
from jetvit.patterns.errors import InputError

Mode = Literal["eager", "compiled"]
SCHEMA = 1
_KEYS = ("schema", "machine", "model", "plan", "mode", "operations", "others", "latency", "crc32")


@dataclass(frozen=True)
class WholeRun:
    """The latency of a whole graph on one machine.

    model, plan: what ran, in words. mode: "eager", one kernel an operator, or "compiled" by Inductor. operations: what
    the graph runs. Raises ValueError for an unknown mode or a latency that is none.
    """

    machine: Machine
    model: str
    plan: str
    mode: Mode
    operations: GraphOperations
    latency: Latency

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode is {self.mode!r}, which is none of {', '.join(get_args(Mode))}")
        refuse_latency(self.latency)


def runs_path(table: str | os.PathLike[str]) -> Path:
    """Return the path of the runs of a latency table's device: beside it, "h100.csv" and "h100.runs.jsonl"."""
    return Path(table).with_suffix(".runs.jsonl")


def read_runs(path: str | os.PathLike[str]) -> list[WholeRun]:
    """All runs of a file, the oldest first.

    Raises InputError, with the file and the line, for anything but whole and undamaged lines.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the runs in {path}", why=str(error)) from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            break
        try:
            if number == len(lines):
                raise ValueError("it is not finished")
            found.append(_parse(line))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            why = f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"{path}, line {number}: no run of a whole model", why=why, do="take the line out, or measure anew"
            ) from None
    return found


def append_runs(path: str | os.PathLike[str], runs: Iterable[WholeRun]) -> None:
    """Add runs to a file, all or none of them, and see them to the disk. Raises OSError."""
    path = Path(path)
    before = path.read_bytes() if path.exists() else b""
    write_whole(path, before + "".join(f"{_line(run)}\n" for run in runs).encode())


def _line(run: WholeRun) -> str:
    record = {
        "schema": SCHEMA,
        "machine": vars(run.machine),
        "model": run.model,
        "plan": run.plan,
        "mode": run.mode,
        "operations": [[_short(operation), count] for operation, count in run.operations.counted.items()],
        "others": dict(run.operations.others),
        "latency": vars(run.latency),
    }
    text = json.dumps(record)
    return f'{text[:-1]}, "crc32": "{checksum(text)}"}}'


def _parse(line: str) -> WholeRun:
    record = json.loads(line)
    if not isinstance(record, dict) or tuple(record) != _KEYS:
        raise ValueError(f"its keys are not {', '.join(_KEYS)}")
    if record["schema"] != SCHEMA:
        raise ValueError(f"its schema is {record['schema']!r}; this version of jetvit reads {SCHEMA}")
    found = record.pop("crc32")
    if found != checksum(json.dumps(record)):
        raise ValueError("its checksum does not fit: it was damaged or edited")
    counted = Counter({Operation(**operation): int(count) for operation, count in record["operations"]})
    return WholeRun(
        Machine(**record["machine"]),
        record["model"],
        record["plan"],
        record["mode"],
        GraphOperations(counted, Counter(record["others"])),
        Latency(**record["latency"]),
    )


def _short(operation: Operation) -> dict[str, Any]:
    """The fields that are not at their defaults."""
    return {
        field.name: value for field in fields(operation) if (value := getattr(operation, field.name)) != field.default
    }
