"""The loop of a sweep: measure what is not in the table yet, for as long as there is time, and lose nothing."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from jetvit.cost_model.measuring.calls import as_graph, first_line, make_call
from jetvit.cost_model.measuring.measurement import Measurement
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.steadiness import ATTEMPTS, steadily
from jetvit.cost_model.measuring.table import TableWriter
from jetvit.cost_model.measuring.timing import Latency, time_call
from jetvit.kernels.tuning import record_choices
from jetvit.patterns.errors import InputError

# Inputs, outputs and what lies between them, to the inputs and outputs alone: in no operator is it more on a CPU.
_MEMORY_FACTOR = 5
# Roughly, of one measurement: all that is not the calls themselves, and how often a long call is made.
_SECONDS_EACH, _CALLS_EACH = 0.2, 25
_LEAST_S = 1e-3  # of any measurement

Progress = Callable[[int, int, float], None]
Measure = Callable[[Operation, torch.device], tuple[Latency, str]]


@dataclass
class Outcome:
    """The result of a sweep: rows written, operations known before, what was skipped and why, what is left.

    skipped: operations that this device cannot run, each with the reason. left: those that the time did not suffice
    for, in one pass or in several. busy: one entry for each row that was left out, because the process waited for a
    core at every attempt, with the last reason.
    """

    written: int = 0
    known: int = 0
    skipped: list[tuple[Operation, str]] = field(default_factory=list)
    left: list[Operation] = field(default_factory=list)
    busy: list[tuple[Operation, str]] = field(default_factory=list)


def measure_operation(operation: Operation, device: torch.device, *, time_limit_s: float = 0.5) -> tuple[Latency, str]:
    """The latency of an operation on random data, and in words what ran.

    On a GPU it is the time of its kernels: a CUDA graph is replayed where one can be made, and the L2 cache is emptied
    before each run, as it is where a whole model runs between two calls. On a CPU torch's present threads run it with
    warm caches.

    Raises RuntimeError (with torch.OutOfMemoryError) or MemoryError for what this device cannot run or hold.
    """
    if device.type == "cpu":
        _refuse_too_large(operation)
    where = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with where:
        call = make_call(operation, device)
        if device.type == "cuda":
            with torch.inference_mode(), record_choices() as chosen:
                call.run()  # compiles and tunes
            call = as_graph(replace(call, config=", ".join([call.config, *chosen.values()])))
        return time_call(call.run, device, time_limit_s=time_limit_s), call.config


def measure_all(
    operations: Sequence[Operation],
    writer: TableWriter,
    device: torch.device,
    *,
    budget_s: float,
    passes: int = 1,
    progress: Progress = lambda done, total, left_s: None,
    say: Callable[[str], None] = lambda text: None,
    measure: Measure = measure_operation,
) -> Outcome:
    """Measure the operations in their order and write each to the table before the next.

    On a CPU an operation that is timed while the process waits for a core is timed again, and left out if that does not
    help: the next run measures it. On a GPU a row is the time of kernels, which a host that waits does not change.

    Args:
        operations: what to measure; `spread` orders them well.
        writer: the table. What it has already is passed over.
        device: where they run; it is that of the writer's machine.
        budget_s: seconds from now. None is begun or repeated afterwards, and what would not fit into the rest, by what
            the table has by then, is put off to the end. One operation may overrun its estimate.
        passes: how many rows of each operation the table is to have. All operations have one before any has two: a slow
            spell of the machine, which outlasts a single measurement, then spoils no more than one of them.
        progress: called with how many are done, how many there are, and the seconds left.
        say: gets a sentence for each operation that is skipped. The sweep then goes on; no row is made up.
        measure: takes the latency.

    Raises InputError where the device itself fails, and what the writer raises.
    """
    start = time.monotonic()

    def left_s() -> float:
        return budget_s - (time.monotonic() - start)

    unique = list(dict.fromkeys(operations))
    outcome = Outcome(known=sum(writer.count(each) >= passes for each in unique))
    total = sum(max(0, passes - writer.count(each)) for each in unique)
    pace = _Pace()
    for known in writer.measurements:
        pace.add(known.operation, _SECONDS_EACH + _CALLS_EACH * known.latency.median_ms / 1e3)

    def measured_steadily(operation: Operation) -> tuple[tuple[Latency, str], list[str]]:
        def attempt() -> tuple[tuple[Latency, str], list[str]]:
            before = time.monotonic()
            measured = measure(operation, device)
            pace.add(operation, time.monotonic() - before)
            return measured, []

        if device.type != "cpu":
            return attempt()
        fitting = left_s() / max(pace.estimate_s(operation), _LEAST_S)
        return steadily(attempt, max(1, min(ATTEMPTS, int(fitting))))

    refused: set[Operation] = set()
    left: dict[Operation, None] = {}
    done = 0
    for number in range(1, passes + 1):
        todo = [each for each in unique if writer.count(each) < number and each not in refused]
        for operation in _affordable(todo, left_s, pace, left):
            progress(done, total, max(0.0, left_s()))
            done += 1
            try:
                (latency, config), doubts = measured_steadily(operation)
            except Exception as error:
                if not _is_refusal(error):
                    raise
                refused.add(operation)
                total -= passes - number
                outcome.skipped.append((operation, _reason(error)))
                say(f"skipped {operation}: {_reason(error)}")
                del error
                _recover(device)
            else:
                if doubts:
                    outcome.busy.append((operation, doubts[-1]))
                    continue
                now = datetime.now(UTC).isoformat(timespec="seconds")
                writer.append(Measurement(writer.machine, operation, latency, config, now))
                outcome.written += 1
    outcome.left = list(left)
    progress(done, total, max(0.0, left_s()))
    return outcome


class _Pace:
    """Predict the time of a measurement, with making its data, from those before it."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[tuple[int, float]]] = {}

    def add(self, operation: Operation, seconds: float) -> None:
        self._seconds.setdefault(operation.op, []).append((_work(operation), seconds))

    def estimate_s(self, operation: Operation) -> float:
        """By the operation of the same op whose work is nearest, else the nearest of all; 0 where there is none.

        More work is taken to need as much more time, which is too much where overhead rules: the better known the op,
        the nearer the truth. Less work is taken to need no less.
        """
        known = self._seconds.get(operation.op) or [each for some in self._seconds.values() for each in some]
        if not known:
            return 0.0
        work = _work(operation)
        nearest, seconds = min(known, key=lambda each: max(each[0] / work, work / each[0]))
        return seconds * max(1.0, work / nearest)


def _affordable(
    todo: Sequence[Operation], left_s: Callable[[], float], pace: _Pace, left: dict[Operation, None]
) -> Iterator[Operation]:
    """Yield the operations that fit into the time, in order.

    One that seems too long is tried again after the others; then it is `left`.
    """
    put_off: dict[Operation, None] = {}
    for queue, others in ((todo, put_off), (put_off, left)):
        for operation in list(queue):
            if left_s() > 0 and pace.estimate_s(operation) <= left_s():
                yield operation
            else:
                others[operation] = None


def _work(operation: Operation) -> int:
    """Of a size with its time, whichever of memory and arithmetic bounds it; a byte costs as ten operations."""
    return operation.flops + 10 * operation.bytes


def _is_refusal(error: Exception) -> bool:
    """Report whether an operation cannot run here, by an exception of torch, or of Triton for too large a kernel."""
    return isinstance(error, RuntimeError | MemoryError) or type(error).__module__.partition(".")[0] == "triton"


def _reason(error: BaseException) -> str:
    # A CPU has no exception of its own for it.
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return "out of memory"
    return first_line(error)


def _recover(device: torch.device) -> None:
    """Free what a failed measurement held, and see that the device still works: some errors spoil it for good."""
    gc.collect()
    if device.type != "cuda":
        return
    try:
        torch.cuda.empty_cache()
        torch.ones(1, device=device).add_(1).item()
    except RuntimeError as error:
        raise InputError(
            f"the device {device} no longer works",
            why=first_line(error),
            do="run the same command again: it goes on after the last row",
        ) from error


def _refuse_too_large(operation: Operation) -> None:
    """Raise MemoryError for what the memory at hand does not hold: the system would end the whole process."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return
    if _MEMORY_FACTOR * operation.bytes > available:
        raise MemoryError(f"{operation} needs more than the {available} bytes that are free")
