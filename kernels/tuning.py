"""Which of several ways is fastest on this device: measured at the first use, kept in one file a device.

What is fastest belongs to a machine, so it is in no plan and no saved graph. A key names the kernel, dtype, head_dim
and options, and the problem's size in steps of a factor of two: a new image size in the same step measures nothing and
compiles nothing.

    JETVIT_AUTOTUNE=0   measure nothing: take what the file has, else the first candidate
    JETVIT_CACHE=DIR    the folder of the files; by default $XDG_CACHE_HOME/jetvit or ~/.cache/jetvit
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

log = logging.getLogger(__name__)

Candidate = TypeVar("Candidate")

VERSION = 1


def choose(
    key: str, device: torch.device, candidates: Sequence[Candidate], measure: Callable[[Candidate], float]
) -> Candidate:
    """The candidate that is fastest on `device`; where there is no GPU, the first.

    Args:
        key: names the problem; `size_step` gives its size.
        device: where it runs.
        candidates: at least one, the first the one to take unmeasured. Told apart by `str`.
        measure: a candidate's latency in milliseconds. It may raise RuntimeError: that candidate cannot run here.
    Raises:
        RuntimeError: no candidate can run.
    """
    if len(candidates) == 1 or device.type != "cuda" or not torch.cuda.is_available():
        return candidates[0]
    # A CUDA graph that is being captured would record the measurement.
    allowed = os.environ.get("JETVIT_AUTOTUNE", "1") != "0" and not torch.cuda.is_current_stream_capturing()
    return _choices(_file(torch.cuda.get_device_name(device))).get(key, candidates, measure if allowed else None)


def size_step(size: int) -> str:
    """The name of the step of two that a size is in; of a size that a graph leaves open, the one it was traced with."""
    known = hint(size)
    return "any" if known is None else f"2^{max(known, 1).bit_length()}"


def hint(size: Any) -> Any:
    """A size as a number, or None where it depends on data; other values as they are."""
    return size.node.hint if isinstance(size, torch.SymInt) else size


def latency_ms(function: Callable[..., object], *arguments: Any) -> float:
    """The median latency in milliseconds of `function` on random tensors that are laid out as those in `arguments`.

    Works inside a trace as well, where the arguments are only descriptions of tensors. The L2 cache is emptied between
    the runs.
    """
    from triton.testing import do_bench

    with _disable_current_modes(), torch.no_grad():
        real = [_random_like(value) if isinstance(value, Tensor) else hint(value) for value in arguments]
        return float(do_bench(lambda: function(*real), warmup=10, rep=40, return_mode="median"))


def _random_like(tensor: Tensor) -> Tensor:
    shape, strides = [hint(size) for size in tensor.shape], [hint(stride) for stride in tensor.stride()]
    return torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device).normal_()


class Choices:
    """The measured choices of one device and the file that keeps them; several processes may share the file.

    The file is data to be trusted no further than needed: an entry that does not name exactly the candidates at hand
    (from another version, or edited) is measured again.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._entries = self._read()

    def get(self, key: str, candidates: Sequence[Candidate], measure: Callable[[Candidate], float] | None) -> Candidate:
        """The known choice, else the fastest by `measure`; without `measure` the first candidate."""
        by_name = {str(candidate): candidate for candidate in candidates}
        with self._lock:
            if not self._knows(key, by_name):
                self._entries.update(self._read())  # another process may have measured it since
            if not self._knows(key, by_name):
                if measure is None:
                    return candidates[0]
                times = {name: _time(measure, candidate) for name, candidate in by_name.items()}
                possible = {name: ms for name, ms in times.items() if ms is not None}
                if not possible:
                    raise RuntimeError(f"{key}: none of {', '.join(by_name)} can run on this device")
                self._entries[key] = {"choice": min(possible, key=possible.__getitem__), "ms": times}
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
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is left aside, and what it held is measured again: %s", self.path, error)
            return {}
        return entries

    def _write(self) -> None:
        """Write the file as a whole, beside its place, with what other processes have added to it."""
        self._entries = {**self._read(), **self._entries}
        content = json.dumps({"version": VERSION, "entries": self._entries}, indent=1, sort_keys=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False, encoding="utf-8") as file:
                file.write(content)
            Path(file.name).replace(self.path)
        except OSError as error:
            log.warning("measured choices are kept for this process only: %s", error)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry["choice"], str) and isinstance(entry["ms"], dict)


def _time(measure: Callable[[Candidate], float], candidate: Candidate) -> float | None:
    try:
        return measure(candidate)
    except RuntimeError as error:  # out of shared memory, or a backend that does not take this shape
        log.info("%s cannot run here: %s", candidate, error)
        return None


@functools.cache
def _choices(path: Path) -> Choices:
    return Choices(path)


def _file(device_name: str) -> Path:
    home = os.environ.get("JETVIT_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jetvit"
    version = torch.__version__.partition("+")[0]
    name = re.sub(r"[^a-z0-9.]+", "-", f"{device_name} torch {version}".lower()).strip("-")
    return (Path(home) if home else cache) / f"{name}.json"
