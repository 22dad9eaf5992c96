"""`Measurement`: the latency of one operation on one `Machine`, with all that it depends on."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import re
import subprocess
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path

import torch

from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.timing import Latency
from jetvit.patterns.wording import counted


@dataclass(frozen=True)
class Machine:
    """A device with what drives it: measurements of one operation on equal machines are one measurement.

    device: what it calls itself. multiprocessors: of a GPU; of a CPU the threads that torch uses. The others are
    versions: driver and cuda "" on a CPU, triton "" where it is not installed.

    Raises ValueError for no device, no multiprocessors, or text that does not fit in a line.
    """

    device: str
    multiprocessors: int
    driver: str
    cuda: str
    torch: str
    triton: str
    jetvit: str

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type == "str":
                _refuse_unprintable(field.name, getattr(self, field.name))
        if not self.device:
            raise ValueError("device is empty")
        if self.multiprocessors < 1:
            raise ValueError(f"multiprocessors is {self.multiprocessors}, which is below 1")

    @property
    def file_name(self) -> str:
        """The name of this device's table: "nvidia-h100-80gb-hbm3.csv", "amd-epyc-threads-2.csv"."""
        name = self.device if self.cuda else f"{self.device} threads {self.multiprocessors}"
        return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") + ".csv"

    def __str__(self) -> str:
        what = "multiprocessor" if self.cuda else "thread"
        return f"{self.device} with {counted(self.multiprocessors, what)}"


@dataclass(frozen=True)
class Measurement:
    """The latency of one operation on one machine. config: what ran, in words. time: when, in UTC and ISO 8601.

    Raises ValueError for a latency that is not finite and above 0, quartiles out of order, a time of another zone, or
    text that does not fit in a line.
    """

    machine: Machine
    operation: Operation
    latency: Latency
    config: str
    time: str

    def __post_init__(self) -> None:
        refuse_latency(self.latency)
        _refuse_unprintable("config", self.config)
        try:
            zone = datetime.fromisoformat(self.time).utcoffset()
        except ValueError:
            raise ValueError(f"time is {self.time!r}, which is no ISO 8601 time") from None
        if zone != timedelta(0):
            raise ValueError(f"time is {self.time!r}, which is not in UTC")

    @property
    def key(self) -> tuple[Machine, Operation]:
        """What tells one measurement from another."""
        return self.machine, self.operation


def device_name(device: torch.device) -> str:
    """Return the name that the device gives itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def this_machine(device: torch.device, jetvit: str) -> Machine:
    """Describe the machine that `device` is part of. jetvit: the version of this package."""
    name = device_name(device)
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    if device.type != "cuda":
        return Machine(name, torch.get_num_threads(), "", "", torch.__version__, triton, jetvit)
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    cuda = torch.version.cuda or torch.version.hip or "unknown"
    return Machine(name, multiprocessors, _driver(), cuda, torch.__version__, triton, jetvit)


def _driver() -> str:
    """The version of the GPU's driver, "unknown" where nothing tells it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        text = ""
    if found := re.search(r"\b\d+\.\d+(\.\d+)*", text):
        return found[0]
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.partition("\n")[0].strip() or "unknown"


def refuse_latency(latency: Latency) -> None:
    """Raise ValueError for times that are not finite and above 0, quartiles out of order, or no samples."""
    for name in ("median_ms", "q25_ms", "q75_ms"):
        if not (math.isfinite(value := getattr(latency, name)) and value > 0):
            raise ValueError(f"{name} is {value}, not a time above 0")
    if not latency.q25_ms <= latency.median_ms <= latency.q75_ms:
        raise ValueError(f"the quartiles are out of order: {latency.q25_ms}, {latency.median_ms}, {latency.q75_ms} ms")
    if latency.reps < 1:
        raise ValueError(f"reps is {latency.reps}, which is below 1")


def _refuse_unprintable(name: str, text: str) -> None:
    if not text.isprintable():
        raise ValueError(f"{name} is {text!r}, which has a line break or another character that cannot be printed")
