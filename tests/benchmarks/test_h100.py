"""The campaign: its order, what it goes on from, and that nothing outlives it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import h100
from benchmarks.campaign import Campaign, Step, TimeOver
from benchmarks.end_to_end import KEY as END_TO_END_KEY
from benchmarks.h100_journal import Journal
from benchmarks.h100_steps import all_steps
from benchmarks.kernel_group import DeviceLost
from benchmarks.kernel_rows import KEY, read_rows
from benchmarks.kernels import CHECK_KEY

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {"device": "CPU", "torch": "2", "triton": "3", "code": "abc"}
COMMAND = [sys.executable, "-m", "benchmarks.h100", "--dry"]


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    monkeypatch.setattr(h100, "_end_with_the_supervisor", lambda: None)
    return Campaign(tmp_path, torch.device("cpu"), True, KNOWN)


def test_steps_have_names_of_their_own_and_stand_in_order_of_value() -> None:
    for dry in (False, True):
        found = all_steps(dry)
        assert len({step.name for step in found}) == len(found)
        assert [step.value for step in found] == sorted(step.value for step in found)
        assert found[0].name == "kernel checks"  # nothing is timed before it is known to be right
        assert {step.name.split()[0] for step in found} == {
            "kernel",
            "kernels",
            "end_to_end",
            "breakdown",
            "operator",
            "latency",
        }
    headline = [step.name for step in all_steps(False)[1:4]]
    assert headline == [
        f"end_to_end {model} 1024x2048 batch 1" for model in ("DINOv3-B", "DINOv3-L", "DepthAnythingV2-L")
    ]


def raising(error: Exception) -> Callable[[Campaign, float], None]:
    def run(campaign: Campaign, seconds: float) -> None:
        raise error

    return run


def test_what_becomes_of_steps(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def step(name: str, run: Callable[[Campaign, float], None] = lambda *_: None, done: bool = False) -> Step:
        def noted(campaign: Campaign, seconds: float) -> None:
            ran.append(name)
            run(campaign, seconds)

        return Step(name, len(ran), 60, lambda _: done, noted)

    steps = [
        step("there", done=True), step("good"), step("bad", raising(ValueError("no\nway"))),
        step("half", raising(TimeOver("3 left"))), step("after"),
    ]  # fmt: skip
    monkeypatch.setattr(h100, "all_steps", lambda dry: steps)
    journal = Journal(campaign.folder / "steps.jsonl")
    assert h100.work(campaign, journal, 60, []) == 0
    assert ran == ["good", "bad", "half", "after"]
    ends = {each["step"]: (each["event"], each.get("reason", "")) for each in journal.events()}
    assert ends["bad"] == ("failed", "ValueError: no way")
    assert ends["half"] == ("stopped", "3 left")
    ran.clear()
    h100.work(campaign, journal, 60, [])
    assert ran == ["bad", "half"]
    ran.clear()
    h100.work(campaign, journal, 60, [])
    assert ran == ["half"]  # what failed twice is left out
    journal.forget_failures()
    ran.clear()
    h100.work(campaign, journal, 60, ["bad"])
    assert ran == ["bad"]
    assert h100.work(campaign, journal, 0, []) == 0


def test_a_lost_device_ends_the_worker(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Step("lost", 1, 60, lambda _: False, raising(DeviceLost("gone")))
    monkeypatch.setattr(h100, "all_steps", lambda dry: [lost])
    journal = Journal(campaign.folder / "steps.jsonl")
    assert h100.work(campaign, journal, 60, []) == 3
    assert journal.failures("lost", KNOWN) == 1


class Worker:
    """A process that does not end by itself."""

    returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode


def test_a_step_that_takes_too_long_is_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "steps.jsonl")
    journal.start("slow", 0.3, KNOWN)
    worker: Any = Worker()
    assert h100._watch(worker, journal, time.monotonic() + 60, began=0) == 3
    assert journal.failures("slow", KNOWN) == 1
    assert "longer than 0 s" in journal.events()[-1]["reason"]


def test_a_step_that_an_earlier_run_was_cut_off_in_takes_no_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "steps.jsonl")
    journal.start("cut off", 0.0, KNOWN)
    worker: Any = Worker()
    assert h100._watch(worker, journal, time.monotonic() - h100._GRACE_S, began=time.time() + 1) is None
    assert journal.failures("cut off", KNOWN) == 0


def test_wrong_words_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        h100.main(["--dry", "--only", "nothing"])
    assert "kernel checks" in capsys.readouterr().err


def test_what_travels_to_a_gpu_machine_is_small() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 60 * 2**20


def start(out: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def workers(out: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--worker" in words and str(out).encode() in words:
            found.append(int(process.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are listed by /proc")
def test_the_worker_ends_with_the_supervisor_that_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path, "--only", "kernel checks")
    deadline = time.monotonic() + 60
    while not workers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert workers(tmp_path)
    time.sleep(random.Random(os.getpid()).uniform(0, 4))  # while it imports, or works
    process.send_signal(signal.SIGKILL)
    process.wait()
    while workers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers(tmp_path)
    again = start(tmp_path, "--only", "kernel checks")
    said = again.communicate(timeout=240)[0].decode()
    assert again.returncode == 0, said
    rows = read_rows(tmp_path / "kernels-checks-dry.csv")
    keys = [tuple(row[name] for name in CHECK_KEY) for row in rows]
    assert len(keys) == len(set(keys)) == 9


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_it_loses_and_doubles_no_row(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, "--minutes", "20").wait(1200) == 0
    rng = random.Random(os.getpid())
    for _ in range(5):
        process = start(cut, "--minutes", "20")
        try:
            process.wait(rng.uniform(5, 40))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert start(cut, "--minutes", "20").wait(1200) == 0
    tables = {
        "kernels": KEY, "kernels-checks": CHECK_KEY, "end_to_end": END_TO_END_KEY, "operator_tests": ("test",),
    }  # fmt: skip
    for name, key in tables.items():
        keys = [
            [tuple(row[column] for column in key) for row in read_rows(folder / f"{name}-dry.csv")]
            for folder in (whole, cut)
        ]
        assert len(keys[1]) == len(set(keys[1]))
        assert set(keys[0]) == set(keys[1])
    assert sorted(each.name for each in whole.glob("breakdown-*")) == sorted(
        each.name for each in cut.glob("breakdown-*")
    )
    for folder in (whole, cut):
        events = [json.loads(line) for line in (folder / "steps-dry.jsonl").read_text().splitlines()]
        assert {each["step"] for each in events if each["event"] == "finished"} == {
            step.name for step in all_steps(dry=True)
        }
        assert not [each for each in events if each["event"] in ("failed", "died")]
        assert "not run yet" not in (folder / "report-dry.md").read_text()


def test_a_machine_without_jsonschema_will_do(tmp_path: Path) -> None:
    """GPU machines that are lent have torch and its usual company; what only reads plans is not asked for."""
    (tmp_path / "jsonschema").mkdir()
    (tmp_path / "jsonschema" / "__init__.py").write_text("raise ImportError")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [*COMMAND, "--list", "--out", str(tmp_path / "out")]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0, said.stderr
    assert "kernel checks" in said.stdout
