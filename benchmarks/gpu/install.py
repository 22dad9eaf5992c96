"""Put the results of a campaign where the README's tables are made from, and its latency table where plans find it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.archive import CACHES, UnsafeArchive, unpack
from benchmarks.gpu.processes import ROOT
from benchmarks.results import RESULTS, folder_of_device
from jetvit.cost_model.files.whole_file import write_whole
from jetvit.cost_model.measuring.measurement import Machine
from jetvit.cost_model.measuring.table import read_table
from jetvit.patterns.errors import InputError

TABLES = ROOT / "cost_model" / "data"
_LINES = (".csv", ".jsonl")  # files that runs append lines to


class NoResults(Exception):
    """A folder or archive holds no results of a campaign on a GPU."""


def install(source: Path, results: Path = RESULTS, tables: Path = TABLES) -> int:
    """Install an archive or a folder of results; return the exit status.

    Results go to RESULTS/DEVICE/DATE, the date of the first run; a file that is there already keeps its lines. The
    latency table goes to `tables`, and `jetvit fit` writes its predictor beside it.
    """
    try:
        with tempfile.TemporaryDirectory() as unpacked:
            folder = source
            if not source.is_dir():
                folder = Path(unpacked)
                unpack(source, folder)
            runs = _runs(folder)
            place = results / folder_of_device(runs[0]["device"]) / runs[0]["run"][:10]
            if place.resolve() != folder.resolve():
                _merge(folder, place)
            print(f"installed {place}", flush=True)
            return _install_table(place, tables, {run["device"] for run in runs})
    except (NoResults, UnsafeArchive, InputError, OSError, tarfile.TarError, EOFError) as error:
        print(f"cannot install {source}: {error}", file=sys.stderr)
        return 1


def _runs(folder: Path) -> list[dict[str, Any]]:
    """Return what the journal says of the runs. Raises NoResults for anything but a campaign on one GPU."""
    path = folder / "machine.jsonl"
    if not path.exists():
        raise NoResults("it has no machine.jsonl, which a campaign on a GPU writes (a dry run has nothing to install)")
    try:
        runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        devices = {str(run["device"]) for run in runs}
        dry = any(run["dry"] != "False" or not run["run"] for run in runs)
    except (ValueError, KeyError, TypeError) as error:
        raise NoResults(f"its machine.jsonl is damaged: {type(error).__name__}: {error}") from error
    if len(devices) != 1 or dry:
        raise NoResults("its runs are dry, or of several devices")
    return runs


def _merge(folder: Path, place: Path) -> None:
    """Copy files; of tables and journals that are there already keep the lines, and add those that are new."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or inside.parts[0] in (CACHES, "logs"):
            continue
        target = place / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in _LINES and target.exists():
            _merge_lines(path, target)
        else:
            shutil.copyfile(path, target)


def _merge_lines(path: Path, target: Path) -> None:
    """Add the lines of a file that another has not. Raises NoResults for tables with different columns."""
    old, new = (each.read_text(encoding="utf-8").splitlines(keepends=True) for each in (target, path))
    if path.suffix == ".csv" and old[:1] != new[:1]:
        raise NoResults(f"{path.name} has other columns than {target}; move that one away")
    known = set(old)
    write_whole(target, "".join([*old, *(line for line in new if line not in known)]).encode())


def _install_table(place: Path, tables: Path, devices: set[str]) -> int:
    """Copy the latency table of the device, if there is one, and fit its predictor; return the exit status."""
    found = [path for device in devices for path in place.glob("*.csv") if path.name == _table_name(device)]
    if not found:
        print("no latency table yet: the step `latency sweep` measures it; then install again")
        print("now: make report")
        return 0
    rows = read_table(found[0])  # refuses a damaged table before it replaces another
    target = tables / found[0].name
    tables.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found[0], target)
    print(f"installed {target}: {len(rows)} rows", flush=True)
    fitted = subprocess.run([sys.executable, "-m", "jetvit", "fit", str(target)], cwd=ROOT, check=False)
    print("now: make report")
    return fitted.returncode


def _table_name(device: str) -> str:
    """Return the name of a GPU's latency table; only the device's name counts in it."""
    return Machine(device, 1, "", "cuda", "", "", "").file_name
