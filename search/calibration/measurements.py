"""Keep the measurements of a calibration, so that one that was killed resumes.

A folder holds run.json, which determines the calibration, and measurements.jsonl with a row for each measurement:
latencies of choices and of whole models, and the errors of every choice and every plan on each batch. The weights of
each refit are in a file of their own, refit_*.safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jetvit.cost_model import Choice
from jetvit.patterns.wording import counted
from jetvit.search.calibration.run_folder import RunFolder
from jetvit.search.calibration.runner import Batch
from jetvit.torch_private import pytree

CHOICE_LATENCIES = "latencies"
"""The key of the latencies of all choices."""

REFIT = "refit_"
"""How the names of the files of refits begin."""

_ROWS = "measurements"


class Measurements:
    """Values by key, each of which is measured once.

    Args:
        folder: keeps the values; None keeps them in memory alone.
    """

    def __init__(self, folder: RunFolder | None = None):
        self._folder = folder
        rows = folder.rows(_ROWS) if folder is not None else []
        self._values: dict[str, Any] = {row["key"]: row["value"] for row in rows}
        self._earlier_s = max((row["seconds"] for row in rows), default=0.0)
        self._start_s = time.perf_counter()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def keep(self, key: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        self._values[key] = value
        if self._folder is not None:
            self._folder.add_row(_ROWS, {"key": key, "value": value, "seconds": round(self.seconds, 3)})

    @property
    def seconds(self) -> float:
        """The time that the calibration took, with that of interrupted runs."""
        return self._earlier_s + time.perf_counter() - self._start_s

    def count(self, start: str) -> int:
        """The number of values whose keys start so."""
        return sum(key.startswith(start) for key in self._values)


def alone_key(site: str, choice: Choice, batch: int) -> str:
    """The key of the errors of one choice on one batch."""
    return f"alone {json.dumps([site, choice.label, batch])}"


def joint_key(chosen: Mapping[str, Choice], held_out: bool, batch: int, name: str = "") -> str:
    """The key of the errors of a plan on one batch. name: tells apart the weights that the plan may have."""
    return f"joint {name}{json.dumps([_labels(chosen), held_out, batch])}"


def whole_key(plans: Sequence[Mapping[str, Choice]]) -> str:
    """The key of the latencies of some whole models."""
    return f"whole {json.dumps([_labels(chosen) for chosen in plans])}"


def resumes(folder: RunFolder, kept: Measurements, single_drifts: int) -> str:
    """Say where a calibration resumes; `single_drifts` is the number of drifts of single choices in all."""
    timed = counted(kept.count("whole "), "timing of whole models", "timings of whole models")
    latencies = "latencies of choices, " if CHOICE_LATENCIES in kept else ""
    return (
        f"the calibration in {folder.path} resumes: {latencies}{kept.count('alone ')} of {single_drifts} drifts of "
        f"single choices, {counted(kept.count('joint '), 'drift of a whole plan', 'drifts of whole plans')} and "
        f"{timed} are kept; the original model runs again"
    )


def remove_measurements(folder: str | os.PathLike[str]) -> None:
    """Remove what a calibration keeps in a folder, and the folder if nothing else is in it."""
    with suppress(OSError):
        for file in (Path(folder) / "run.json", Path(folder) / f"{_ROWS}.jsonl", *Path(folder).glob(f"{REFIT}*")):
            file.unlink(missing_ok=True)
        Path(folder).rmdir()


@contextmanager
def removed_if_refused(folder: RunFolder | None) -> Iterator[None]:
    """Remove a new folder if the block, which measures nothing, fails."""
    try:
        yield
    except BaseException:
        if folder is not None and not folder.resumed:
            remove_measurements(folder.path)
        raise


def images_digest(batches: Sequence[Batch]) -> str:
    """The sha256, in hex, of all values that a model is called with."""
    total = hashlib.sha256()
    for leaf in pytree.tree_leaves(list(batches)):
        if isinstance(leaf, Tensor):
            total.update(f"{leaf.dtype} {list(leaf.shape)}".encode())
            total.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            total.update(repr(leaf).encode())
    return total.hexdigest()


def _labels(chosen: Mapping[str, Choice]) -> dict[str, str]:
    return {name: choice.label for name, choice in chosen.items()}
