"""The files of a search, which can be killed at any moment and resumes from them.

    run.json              the configuration; a folder never resumes with another one
    STAGE.safetensors     weights, optimiser and progress of a stage; replaced as a whole
    metrics.csv           one row a step
    evaluations.jsonl     every path whose quality was measured

A calibration keeps run.json and measurements.jsonl (`jetvit.search.calibration.measurements`).

Nothing of it is unpickled. There is no state of a random generator to keep: which images and which path a step takes
follows from the seed and the number of the step.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from jetvit.cost_model import sample_base
from jetvit.cost_model.files.lock import locked
from jetvit.cost_model.files.whole_file import refuse_full_disk, write_whole
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted

METRICS = ("stage", "step", "loss", "rate", "seconds")


class RunFolder:
    """A folder of a search or a calibration.

    Attributes:
        resumed: whether the folder was there before, with the same configuration.

    Args:
        path: made if it is not there.
        config: what determines the run, as JSON holds it.
        writes: whether this process writes; of several, one does.
        work: "search" or "calibration", for messages.
    Raises:
        InputError: the folder is that of another run, damaged, or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        writes: bool = True,
        work: str = "search",
    ):
        self.path, self.writes, self._work = Path(path), writes, work
        asked = json.loads(json.dumps(config))
        file = self.path / "run.json"
        self.resumed = file.exists()
        if self.resumed:
            self._refuse_other(asked)
        elif writes:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self.keep("run", asked)
            except OSError as error:
                raise InputError(f"the {work} cannot keep its progress", why=str(error), where=str(path)) from error

    def save(self, stage: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Keep the progress of a stage in the place of what was kept before."""
        if self.writes:
            own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
            self._write(f"{stage}.safetensors", to_bytes(own, {"record": json.dumps(record)}))

    def load(self, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Load the tensors and the record of a stage, on the CPU; None if it has none.

        Raises:
            InputError: the file is damaged.
        """
        file = self.path / f"{stage}.safetensors"
        if not file.exists():
            return None
        with self._reading(stage, file), safe_open(file, "pt") as stored:
            record = json.loads(stored.metadata()["record"])
            return {name: stored.get_tensor(name) for name in stored.keys()}, record  # noqa: SIM118

    def keep(self, name: str, value: Any) -> None:
        """Keep a JSON value as `name`.json."""
        if self.writes:
            self._write(f"{name}.json", (json.dumps(value, indent=1) + "\n").encode())

    def kept(self, name: str) -> Any:
        """A value that was kept; None if there is none. Raises InputError for a damaged file."""
        file = self.path / f"{name}.json"
        if not file.exists():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{name} of the {self._work} cannot be read", why=str(error), where=str(file)) from error

    def metrics(self, stage: str, rows: Iterable[Sequence[Any]]) -> None:
        """Put the rows (step, loss, rate, seconds) of a stage into metrics.csv, in the place of those it had."""
        if not self.writes:
            return
        file = self.path / "metrics.csv"
        kept: list[Sequence[Any]] = [METRICS]
        if file.exists():
            with file.open(newline="", encoding="utf-8") as stream:
                kept = [row for row in csv.reader(stream) if row and row[0] != stage]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*kept, *([stage, *row] for row in rows)])
        self._write(file.name, text.getvalue().encode())

    def stages(self) -> list[tuple[str, bool, int]]:
        """The name of each stage that was kept, whether it is done, and its number of steps, the oldest first.

        Raises:
            InputError: a file is damaged.
        """
        files = sorted(self.path.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
        found = []
        for file in files:
            with self._reading(file.stem, file), safe_open(file, "pt") as stored:
                record = json.loads(stored.metadata()["record"])
                found.append((file.stem, bool(record["done"]), len(record["seconds"])))
        return found

    def evaluations(self) -> list[dict[str, Any]]:
        """All evaluations that were kept."""
        return self.rows("evaluations")

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Keep an evaluation."""
        self.add_row("evaluations", record)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of `name`.jsonl; a row that was cut off in the middle of its line does not count.

        Raises:
            InputError: the file is damaged.
        """
        file = self.path / f"{name}.jsonl"
        if not file.exists():
            return []
        *lines, unfinished = file.read_text(encoding="utf-8").split("\n")
        if unfinished and self.writes:
            self._write(file.name, "".join(f"{line}\n" for line in lines).encode())
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise InputError(
                f"the {name} of the {self._work} cannot be read", why=str(error), where=str(file), do="remove the file"
            ) from error

    def add_row(self, name: str, row: Mapping[str, Any]) -> None:
        """Add a row to `name`.jsonl."""
        if self.writes:
            file = self.path / f"{name}.jsonl"
            with refuse_full_disk(file, self._resumes), file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")

    @property
    def _resumes(self) -> str:
        return f"free space; the same {self._work} then resumes"

    @contextmanager
    def _reading(self, stage: str, file: Path) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"the progress of {stage} cannot be read",
                why=str(error),
                where=str(file),
                do="remove the file, and the stage begins anew",
            ) from error

    def _write(self, name: str, data: bytes) -> None:
        with refuse_full_disk(self.path / name, self._resumes):
            write_whole(self.path / name, data)

    def _refuse_other(self, asked: Mapping[str, Any]) -> None:
        kept = self.kept("run")
        for name, was, now in _differences("", kept, asked):
            raise InputError(
                f"the folder holds another {self._work}",
                why=f"{name} is {_short(now)}, and was {_short(was)}",
                where=str(self.path),
                do="name a new folder, or ask for the same as before",
            )


def locked_folder(path: str | os.PathLike[str], work: str) -> AbstractContextManager[None]:
    """Keep other runs from writing to the folder of a search or a calibration; its parents are made.

    Raises:
        InputError: another run writes there, or no folder can be made there.
    """
    try:
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the {work} cannot keep its progress", why=str(error), where=os.fspath(path)) from error
    return locked(path)


def resume_message(folder: RunFolder) -> str:
    """Describe where a search resumes: the stages that are done, the steps of others, the number of rated paths."""
    stages = [(name.replace("_", " "), done, steps) for name, done, steps in folder.stages()]
    finished = [name for name, done, _ in stages if done]
    parts = [f"done: {', '.join(finished)}" if finished else "no stage is done"]
    parts += [f"{name} resumes at step {steps + 1}" for name, done, steps in stages if not done]
    if rated := len(folder.evaluations()):
        parts.append(f"{counted(rated, 'path')} rated")
    return f"the search in {folder.path} resumes ({'; '.join(parts)})"


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256, in hex, of some values of each floating-point tensor."""
    samples = sample_base({name: each for name, each in tensors.items() if each.is_floating_point()})
    return hashlib.sha256(b"".join(each.numpy().tobytes() for each in samples.values())).hexdigest()


def _differences(name: str, was: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Describe the first difference of two JSON values: the name of the entry, and both."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *was]):
            yield from _differences(f"{name}.{key}".strip("."), was.get(key), now.get(key))
    elif was != now:
        yield name, was, now


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:80]} … {text[-30:]}"
