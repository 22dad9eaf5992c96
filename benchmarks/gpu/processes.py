"""Run child processes that cannot outlive their parent, several at a time, each with a log of its own.

A child has a process group of its own and a pipe from its parent. `end_with_parent` kills the group when the pipe
closes, so a parent that is killed leaves nothing behind; `end` kills the group at a time limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_POLL_S = 0.1


@dataclass(frozen=True)
class Task:
    """A program to run: `python -m module` with one JSON object as its argument. name: of its log file."""

    name: str
    module: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The end of a task. status: its exit status, None if it was killed at the time limit or not started before it."""

    name: str
    status: int | None
    seconds: float
    last_line: str


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a child that ends with this process, if it calls `end_with_parent`."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd=ROOT, **options)


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and its own children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdin is not None:
        child.stdin.close()


def end_with_parent() -> None:
    """Kill this process and its children as soon as the parent is gone."""

    def wait() -> None:
        while os.read(0, 1):  # not through sys.stdin, whose buffer must not be read from when Python ends
            pass
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


class Batch:
    """Tasks of which so many run at a time, each with the log logs/NAME.log."""

    def __init__(self, tasks: Sequence[Task], processes: int, logs: Path):
        self._waiting, self._processes, self._logs = list(tasks), min(processes, len(tasks)), logs
        self._running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        self._outcomes: list[Outcome] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start as many tasks as may run."""
        while self._waiting and len(self._running) < self._processes:
            task = self._waiting.pop(0)
            self._running[task.name] = _start_task(task, self._logs, self._processes), time.monotonic()

    def wait(self, seconds: float) -> list[Outcome]:
        """Run all tasks, kill those that are not done after so many seconds; return the outcomes as tasks ended."""
        deadline = time.monotonic() + seconds
        while self._waiting or self._running:
            if time.monotonic() > deadline:
                self.close()
                break
            self.start()
            for name, (child, _) in list(self._running.items()):
                if child.poll() is not None:
                    self._end(name)
            time.sleep(_POLL_S)
        return self._outcomes

    def close(self) -> None:
        """Kill the tasks that run and start no other."""
        for name in list(self._running):
            self._end(name)
        self._outcomes += [Outcome(task.name, None, 0.0, "not started in time") for task in self._waiting]
        self._waiting = []

    def _end(self, name: str) -> None:
        child, began = self._running.pop(name)
        status = child.poll()
        end(child)
        log = self._logs / f"{name}.log"
        self._outcomes.append(Outcome(name, status, time.monotonic() - began, _last_line(log)))


def run_together(tasks: Sequence[Task], *, processes: int, seconds: float, logs: Path) -> list[Outcome]:
    """Run a batch of tasks to its end."""
    batch = Batch(tasks, processes, logs)
    try:
        return batch.wait(seconds)
    finally:
        batch.close()


def _start_task(task: Task, logs: Path, together: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", task.module, json.dumps(dict(task.arguments))]
    # Each child gets its share of the cores, for Inductor's own compile processes and for torch's threads.
    share = str(max(1, (os.cpu_count() or 1) // together))
    environment = os.environ | {"OMP_NUM_THREADS": share, "TORCHINDUCTOR_COMPILE_THREADS": share}
    with (logs / f"{task.name}.log").open("wb") as log:
        return start(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
