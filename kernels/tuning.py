"""Autotune on first use; one cache file per device.

What is fastest belongs to a machine, so it is in no plan and no saved graph. A key names the kernel, dtype, head_dim
and options, and the problem's size in steps of a factor of two: a new image size in the same step measures nothing and
compiles nothing.

Candidates round differently: results are the same to the bit in every run only where the choices are the same, by a
file that is kept or by JETVIT_AUTOTUNE=0 without one.

    JETVIT_AUTOTUNE=0   measure nothing: take what the file has, else the first candidate
    JETVIT_CACHE=DIR    the folder of the files; by default $XDG_CACHE_HOME/jetvit or ~/.cache/jetvit,
                        without a home a folder of the user in that for temporary files
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from jetvit.kernels.cuda_graph import captured
from jetvit.torch_private import disable_current_modes

log = logging.getLogger(__name__)

Candidate = TypeVar("Candidate")

VERSION = 1


class CannotMeasure(Exception):
    """Nothing can be measured now, which says nothing about whether the candidates can run."""


def choose(
    key: str, device: torch.device, candidates: Sequence[Candidate], measure: Callable[[Candidate], float]
) -> Candidate:
    """The candidate that is fastest on `device`; where there is no GPU, the first.

    Args:
        key: names the problem; `size_step` gives its size.
        device: where it runs.
        candidates: at least one, the first the one to take unmeasured. Told apart by `str`.
        measure: a candidate's latency in milliseconds. What it raises means that this candidate cannot run here, but
            for `CannotMeasure` and for a lack of memory, after which the first candidate is taken.
    Raises:
        RuntimeError: no candidate can run.
    """
    chosen = _choose(key, device, candidates, measure)
    for record in _records:
        record[key] = str(chosen)
    return chosen


@contextlib.contextmanager
def record_choices() -> Iterator[dict[str, str]]:
    """Yield a dict that gets what `choose` answers meanwhile, in any thread, by key."""
    record: dict[str, str] = {}
    _records.append(record)
    try:
        yield record
    finally:
        _records[:] = [each for each in _records if each is not record]


_records: list[dict[str, str]] = []


def _choose(
    key: str, device: torch.device, candidates: Sequence[Candidate], measure: Callable[[Candidate], float]
) -> Candidate:
    if len(candidates) == 1 or device.type != "cuda" or not torch.cuda.is_available():
        return candidates[0]
    # Streams, events and the emptying of L2 are those of the current device, wherever the tensors are.
    with torch.cuda.device(device):
        # A CUDA graph that is being captured would record the measurement.
        allowed = os.environ.get("JETVIT_AUTOTUNE", "1") != "0" and not torch.cuda.is_current_stream_capturing()
        choices = _choices(_file(torch.cuda.get_device_name(device)))
        return choices.get(key, candidates, measure if allowed else None)


def size_step(size: int) -> str:
    """The name of the step of two that a size is in; of a size that a graph leaves open, the one it was traced with."""
    known = hint(size)
    return "any" if known is None else f"2^{max(known, 1).bit_length()}"


def hint(size: Any) -> Any:
    """A size as a number, or None where it depends on data; other values as they are."""
    return size.node.hint if isinstance(size, torch.SymInt) else size


def latency_ms(function: Callable[..., object], *arguments: Any) -> float:
    """The median latency in milliseconds of `function` on random tensors that are laid out as those in `arguments`.

    On the device alone: what is timed is the replay of a CUDA graph, because kernels of a few microseconds would
    otherwise be ranked by the host that launches them. The L2 cache is emptied between the runs. Works inside a trace
    as well, where the arguments are only descriptions of tensors.
    """
    from triton.testing import do_bench

    with disable_current_modes(), torch.no_grad():
        real = [_random_like(value) if isinstance(value, Tensor) else hint(value) for value in arguments]

        def call() -> object:
            return function(*real)

        call()  # compiles, which would spoil a capture
        try:
            timed = captured(call)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.info("not captured as a CUDA graph, timed with its launches: %s", error)
            timed = call
        return float(do_bench(timed, warmup=10, rep=40, return_mode="median"))


def _random_like(tensor: Tensor) -> Tensor:
    """A tensor of the same sizes, strides, dtype and device, over memory of its own.

    Raises:
        CannotMeasure: a size depends on data.
    """
    shape, strides = [hint(size) for size in tensor.shape], [hint(stride) for stride in tensor.stride()]
    if None in shape or None in strides:
        raise CannotMeasure("a size depends on data")
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # Filled before it is given its strides: those of an expanded tensor cannot be written through.
    storage = torch.empty(max(span, 0), dtype=tensor.dtype, device=tensor.device).normal_()
    return storage.as_strided(shape, strides)


class Choices:
    """The measured choices of one device and the file that keeps them; several processes may share the file.

    The file is data to be trusted no further than needed: an entry that does not name exactly the candidates at hand
    (from another version, or edited) is measured again.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._entries = self._read()
        self._unmeasured: set[str] = set()

    def get(self, key: str, candidates: Sequence[Candidate], measure: Callable[[Candidate], float] | None) -> Candidate:
        """The known choice, else the fastest by `measure`; without `measure` the first candidate."""
        by_name = {str(candidate): candidate for candidate in candidates}
        with self._lock:
            if not self._knows(key, by_name):
                self._entries.update(self._read())  # another process may have measured it since
            if not self._knows(key, by_name):
                if measure is None or key in self._unmeasured:
                    return candidates[0]
                try:
                    self._entries[key] = _measured(key, by_name, measure)
                except (CannotMeasure, torch.OutOfMemoryError) as error:
                    # Not kept: with more memory at hand, or in another process, it may go well.
                    self._unmeasured.add(key)
                    log.warning("%s: not measured, %s is taken: %s", key, candidates[0], error)
                    return candidates[0]
                log.info("%s: %s", key, self._entries[key])
                self._write()
            return by_name[self._entries[key]["choice"]]

    def _knows(self, key: str, by_name: dict[str, Any]) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry["choice"] in by_name and set(entry["ms"]) == set(by_name)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            entries = content["entries"]
            if content["version"] != VERSION or not all(_is_entry(entry) for entry in entries.values()):
                raise ValueError("not a file of measured choices, or of another version")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            _warn_once(f"{self.path} is left aside, and what it held is measured again: {error}")
            return {}
        return entries

    def _write(self) -> None:
        """Write the file as a whole, beside its place, with what other processes have added to it."""
        self._entries = {**self._read(), **self._entries}
        content = json.dumps({"version": VERSION, "entries": self._entries}, indent=1, sort_keys=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # In a folder of its own, which goes whatever happens; and a plain file, whose mode lets others read it.
            with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
                file = Path(folder, self.path.name)
                file.write_text(content, encoding="utf-8")
                file.replace(self.path)
        except OSError as error:
            _warn_once(f"measured choices are kept for this process only: {error}")


def _is_entry(entry: Any) -> bool:
    return isinstance(entry["choice"], str) and isinstance(entry["ms"], dict)


def _measured(key: str, by_name: dict[str, Any], measure: Callable[[Any], float]) -> dict[str, Any]:
    """The entry of a key: the latency of each candidate, None for those that cannot run, and the fastest."""
    times: dict[str, float | None] = {}
    reason: Exception | None = None
    for name, candidate in by_name.items():
        try:
            times[name] = measure(candidate)
        except (CannotMeasure, torch.OutOfMemoryError):
            raise
        # Anything else: too much shared memory for this device, a failing ptxas, a backend without this shape, each
        # with an exception of its own.
        except Exception as error:
            log.info("%s: %s cannot run here: %s", key, name, error)
            times[name], reason = None, error
    possible = {name: ms for name, ms in times.items() if ms is not None}
    if not possible:
        raise RuntimeError(
            f"{key}: none of {', '.join(by_name)} can run on this device; the last: {reason}"
        ) from reason
    return {"choice": min(possible, key=possible.__getitem__), "ms": times}


@functools.cache
def _warn_once(message: str) -> None:
    log.warning("%s", message)


@functools.cache
def _choices(path: Path) -> Choices:
    return Choices(path)


def _file(device_name: str) -> Path:
    version = torch.__version__.partition("+")[0]
    name = re.sub(r"[^a-z0-9.]+", "-", f"{device_name} torch {version}".lower()).strip("-")
    return _folder() / f"{name}.json"


def _folder() -> Path:
    if own := os.environ.get("JETVIT_CACHE"):
        return Path(own).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jetvit"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"jetvit-{os.getuid()}"
