"""Result files: what was measured, with the device, the versions and the command, under benchmarks/results."""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jetvit import __version__
from jetvit.cost_model.measuring.measurement import device_name

RESULTS = Path(__file__).parent / "results"
_RENAMED = {"benchmarks.cost_model_gemm": "benchmarks.cost_model.gemm"}
"""Programs by their names at the time of a result file, and by those that they have now."""


def environment() -> dict[str, Any]:
    """Device, versions, threads, date and command, as every result file begins."""
    return {
        "command": "python -m " + " ".join([_module(), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "jetvit": __version__,
    }


def default_path(name: str, at: float | None = None) -> Path:
    """Return benchmarks/results/<device>/<date>/<name>.json. at: seconds of the clock, now by default."""
    day = datetime.datetime.fromtimestamp(time.time() if at is None else at, datetime.UTC).date().isoformat()
    return RESULTS / folder_of_device(environment()["device"]) / day / f"{name}.json"


def folder_of_device(device: str) -> str:
    """Return the name of the folder of a device's results: "NVIDIA H200" has nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def write(path: str | Path, record: dict[str, Any]) -> None:
    """Write a result file and say where."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def write_page(path: Path, text: str, check: bool) -> int:
    """Write a page that is made from results, or with `check` only compare it: the exit status, 1 if it is behind."""
    if check:
        return 0 if path.is_file() and path.read_text(encoding="utf-8") == text else 1
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}")
    return 0


def command_of(record: Mapping[str, Any]) -> str:
    """Return the command that makes the results of a record again."""
    old, _, arguments = str(record["command"]).removeprefix("python -m ").partition(" ")
    return f"python -m {_RENAMED.get(old, old)} {arguments}".rstrip()


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec is not None else sys.argv[0]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV and say where; a column that a row has not is empty, one that is not named left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")
