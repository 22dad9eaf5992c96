"""Child processes of a campaign: several at a time, each with a log, none longer than its time or its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu.processes import ROOT, Batch, Task, run_together

PROGRAM = """
import json, subprocess, sys, time
from benchmarks.gpu.processes import end_with_parent
end_with_parent()
given = json.loads(sys.argv[1])
if "child" in given:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(given["child"], "w").write(str(child.pid))
time.sleep(given.get("sleep", 0))
print("first line")
print("last line", flush=True)
sys.exit(given.get("status", 0))
"""


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


def read_pid(path: Path) -> int:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return int(path.read_text())


def test_all_run_and_the_outcomes_say_how_they_ended(tmp_path: Path) -> None:
    tasks = [Task(f"t{number}", "a_program", {"status": number}) for number in range(3)]
    found = {each.name: each for each in run_together(tasks, processes=2, seconds=60, logs=tmp_path / "logs")}
    assert {name: each.status for name, each in found.items()} == {"t0": 0, "t1": 1, "t2": 2}
    assert {each.last_line for each in found.values()} == {"last line"}
    assert (tmp_path / "logs" / "t1.log").read_text() == "first line\nlast line\n"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_what_is_not_done_in_time_is_killed_with_its_children_and_the_rest_is_not_started(tmp_path: Path) -> None:
    tasks = [Task("slow", "a_program", {"sleep": 60, "child": str(tmp_path / "pid")}), Task("late", "a_program", {})]
    batch = Batch(tasks, 1, tmp_path / "logs")
    batch.start()
    pid = read_pid(tmp_path / "pid")
    began = time.monotonic()
    found = batch.wait(0.2)
    assert time.monotonic() - began < 10
    assert [(each.name, each.status) for each in found] == [("slow", None), ("late", None)]
    assert found[1].last_line == "not started in time"
    assert gone(pid)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_they_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = f"""
from pathlib import Path
from benchmarks.gpu.processes import Task, run_together
task = Task("slow", "a_program", {{"sleep": 60, "child": {str(tmp_path / "pid")!r}}})
run_together([task], processes=1, seconds=60, logs=Path({str(tmp_path / "logs")!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT)
    pid = read_pid(tmp_path / "pid")
    assert is_alive(pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert gone(pid)


def test_a_program_runs_under_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "another.py").write_text("import sys\nprint(__name__, __spec__.name, sys.argv[1:])")
    task = Task("a", "benchmarks.gpu.run_module", {"module": "another", "arguments": ["--x", "1"]})
    (outcome,) = run_together([task], processes=1, seconds=60, logs=tmp_path / "logs")
    assert (outcome.status, outcome.last_line) == (0, "__main__ another ['--x', '1']")
