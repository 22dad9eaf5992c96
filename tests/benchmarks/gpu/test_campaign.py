"""The campaign: its order, what it starts in the time that is left, what it resumes, and that nothing outlives it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.end_to_end.cases import KEY as END_TO_END_KEY
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import steps as listed
from benchmarks.gpu import supervisor, worker
from benchmarks.gpu.campaign import Campaign, Cost, Skipped, Step, TimeOver, time_slice_s
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.schedule import expected_s, is_warm, mark_warm, plan, times
from benchmarks.gpu.steps import all_steps
from benchmarks.kernels.group import DeviceLost
from benchmarks.kernels.measure import CHECK_KEY
from benchmarks.kernels.rows import KEY, read_rows

ROOT = Path(__file__).resolve().parents[3]
KNOWN = {"device": "CPU", "torch": "2", "triton": "3", "code": "abc"}
COMMAND = [sys.executable, "-m", "benchmarks.gpu", "--dry"]
Run = Callable[[Campaign, float], None]


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    return Campaign(tmp_path, torch.device("cpu"), False, KNOWN)


@pytest.fixture
def journal(campaign: Campaign) -> Journal:
    return Journal(campaign.folder / "steps.jsonl")


def step(name: str, run: Run = lambda *_: None, cost: float = 1, done: bool = False, **more: Any) -> Step:
    return Step(name, 1, Cost(cost, cost / 10, "a test"), 60, lambda _: done, run, **more)


def raising(error: Exception) -> Run:
    def run(campaign: Campaign, seconds: float) -> None:
        raise error

    return run


def test_steps_have_names_of_their_own_and_stand_in_order_of_value() -> None:
    for dry in (False, True):
        found = all_steps(dry)
        assert len({step.name for step in found}) == len(found)
        assert [step.value for step in found] == sorted(step.value for step in found)
        assert {step.name.split()[0] for step in found} == {
            *("compile", "kernel", "kernels", "tune", "end_to_end", "breakdown"),
            *("operator", "latency", "search_camvid"),
        }
        assert all(0 < step.cost.warm_s <= step.cost.cold_s < step.limit_s for step in found)
        assert all(step.cost.basis for step in found)
    assert [step.name for step in all_steps(False)[:12]] == [
        "compile kernels",
        "kernel checks of bf16 and fp16",  # nothing is timed before it is known to be right
        "kernels DINOv3-L 1024x2048, first mixers",
        "kernels DepthAnythingV2-L 1024x2048, first mixers",
        "tune kernels",
        "compile models",  # nothing is timed while models are compiled
        *(f"end_to_end {model} 1024x2048 batch 1" for model in ("DINOv3-L", "DepthAnythingV2-L", "DINOv3-B")),
        "breakdown DINOv3-L hybrid 2 FA",
        "compile DINOv3-L next",
        "end_to_end DINOv3-L 1024x2048 batch 1 next",
    ]


def test_the_step_that_fills_the_caches_comes_before_those_that_find_them_warm() -> None:
    for dry in (False, True):
        found = all_steps(dry)
        order = {step.name: number for number, step in enumerate(found)}
        for each in found:
            if each.warmed_by in order:
                assert order[each.warmed_by] < order[each.name]
                assert found[order[each.warmed_by]].fills_caches
    names = {step.name for step in all_steps(False)}
    assert {step.warmed_by for step in all_steps(False)} - {""} <= names


def plan_of(steps: list[Step], campaign: Campaign, journal: Journal, seconds: float) -> dict[str, tuple[str, str]]:
    """Of each step the expected seconds and the words behind its name."""
    lines = list(plan(steps, campaign, journal, seconds))[2:]
    return {words[0]: (line.split()[0], words[1]) for line in lines if (words := line[28:].split(": ", 1))}


def test_nine_minutes_hold_what_decides(campaign: Campaign, journal: Journal) -> None:
    found = plan_of(all_steps(False), campaign, journal, 540)
    assert all(words != "does not fit" for _, words in list(found.values())[:12])
    assert found["end_to_end DINOv3-7B 1024x2048 batch 1"][1] == "does not fit"


def test_what_becomes_of_steps(campaign: Campaign, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def noted(name: str, run: Run = lambda *_: None, **more: Any) -> Step:
        return step(name, lambda campaign, seconds: (ran.append(name), run(campaign, seconds))[1], **more)

    steps = [
        noted("there", done=True), noted("good"), noted("bad", raising(ValueError("no\nway"))),
        noted("half", raising(TimeOver("3 left"))), noted("no data", raising(Skipped("no images"))), noted("after"),
    ]  # fmt: skip
    monkeypatch.setattr(worker, "all_steps", lambda dry: steps)
    assert worker.work(campaign, journal, 60, []) == 0
    assert ran == ["good", "bad", "half", "no data", "after"]
    ends = {each["step"]: (each["event"], each.get("reason", "")) for each in journal.events()}
    assert ends["bad"] == ("failed", "ValueError: no way")
    assert ends["half"] == ("stopped", "3 left")
    assert ends["no data"] == ("skipped", "no images")
    ran.clear()
    worker.work(campaign, journal, 60, [])
    assert ran == ["bad", "half", "no data"]
    ran.clear()
    worker.work(campaign, journal, 60, [])
    assert ran == ["half", "no data"]  # what failed twice is left out
    states = plan_of(steps, campaign, journal, 60)
    assert states["good"][1] == "done"
    assert states["bad"][1] == "failed 2 times (--retry)"
    assert states["half"][1] == "a test"
    journal.forget_failures()
    ran.clear()
    worker.work(campaign, journal, 60, ["bad"])
    assert ran == ["bad"]


def test_a_step_starts_only_if_it_would_end_in_time(
    campaign: Campaign, journal: Journal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    steps = [
        step(name, lambda *_, name=name: ran.append(name), cost)
        for name, cost in (("short", 5), ("long", 100), ("cheap", 20))
    ]
    monkeypatch.setattr(worker, "all_steps", lambda dry: steps)
    worker.work(campaign, journal, 60, [])
    assert ran == ["short", "cheap"]  # a cheaper step after one that does not fit
    assert "long: postponed, expected 100 s, 60 s are left" in capsys.readouterr().out
    (postponed,) = (event for event in journal.events() if event["event"] == "postponed")
    assert (postponed["step"], postponed["reason"]) == ("long", "expected 100 s, 60 s were left")
    assert journal.failures("long", KNOWN) == 0
    worker.work(campaign, journal, 120, [])
    assert ran == ["short", "cheap", "long"]
    worker.work(campaign, journal, 0, [])
    assert ran == ["short", "cheap", "long"]


def test_warm_caches_make_a_step_cheaper_on_this_machine_alone(campaign: Campaign, journal: Journal) -> None:
    fills, uses = step("fills", fills_caches=True), step("uses", cost=100, warmed_by="fills")
    assert expected_s(uses, campaign) == 100
    assert plan_of([fills, uses], campaign, journal, 60)["uses"] == ("10", "a test")  # the plan runs both
    mark_warm("fills", campaign)
    assert expected_s(uses, campaign) == 10
    other = Campaign(campaign.folder, campaign.device, False, KNOWN | {"code": "changed"})
    assert not is_warm("fills", other)
    assert expected_s(uses, other) == 100


def test_a_step_that_fills_caches_runs_again_where_they_are_gone(
    campaign: Campaign, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    fills = step("fills", lambda *_: ran.append("fills"), fills_caches=True)
    monkeypatch.setattr(worker, "all_steps", lambda dry: [fills])
    for _ in range(2):
        worker.work(campaign, journal, 60, [])
    assert ran == ["fills"]
    for mark in campaign.caches.iterdir():  # the folder of results has gone to another machine
        mark.unlink()
    worker.work(campaign, journal, 60, [])
    assert ran == ["fills", "fills"]


def test_a_dry_run_has_times_of_its_own(campaign: Campaign) -> None:
    dry = Campaign(campaign.folder, campaign.device, True, KNOWN)
    assert expected_s(Step("a", 1, Cost(9, 9, "", dry_s=3), 60, lambda _: False, lambda *_: None), dry) == 3


def test_expected_and_actual_times_are_set_beside_each_other(journal: Journal) -> None:
    journal.write(journal.start("earlier", 60, KNOWN), "finished")
    since = time.time()
    journal.write(journal.start("one", 60, KNOWN, expected_s=7), "failed", "why")
    journal.postpone("two", KNOWN, 70, 30)
    lines = list(times(journal.events(), since))[1:]
    assert [line.split() for line in lines] == [
        ["7", "0.0", "one:", "failed:", "why"],
        ["70", *["two:", "postponed:", "expected", "70", "s,", "30", "s", "were", "left"]],
    ]


@pytest.mark.parametrize(("left", "most", "expected"), [(400, 240, 200), (600, 240, 240), (40, 240, 30), (10, 240, 10)])
def test_a_step_without_an_end_takes_a_part_of_the_time(left: float, most: float, expected: float) -> None:
    assert time_slice_s(left, most) == expected


def test_a_lost_device_ends_the_worker(campaign: Campaign, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "all_steps", lambda dry: [step("lost", raising(DeviceLost("gone")))])
    assert worker.work(campaign, journal, 60, []) == supervisor.LOST
    assert journal.failures("lost", KNOWN) == 1


class Process:
    """A process that does not end by itself."""

    returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode


class Nothing:
    """A keeper that keeps nothing."""

    def update(self, journal: Journal) -> None:
        pass


def test_a_step_that_takes_too_long_is_reported_and_not_repeated_at_once(
    campaign: Campaign, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = journal.start("slow", 0.3, KNOWN)
    process: Any = Process()
    keeper: Any = Nothing()
    assert supervisor.watch(process, journal, time.monotonic() + 60, 0, keeper) == supervisor.LOST
    assert journal.failures("slow", KNOWN) == 1
    assert "longer than 0 s" in journal.events()[-1]["reason"]
    ran: list[str] = []
    monkeypatch.setattr(worker, "all_steps", lambda dry: [step("slow", lambda *_: ran.append("slow"))])
    worker.work(campaign, journal, 60, [], since=started["at"])
    assert not ran
    worker.work(campaign, journal, 60, [], since=time.time())  # the next command
    assert ran == ["slow"]


def test_a_step_that_an_earlier_run_was_cut_off_in_takes_no_time(journal: Journal) -> None:
    journal.start("cut off", 0.0, KNOWN)
    process: Any = Process()
    keeper: Any = Nothing()
    over = time.monotonic() - supervisor._GRACE_S
    assert supervisor.watch(process, journal, over, time.time() + 1, keeper) is None
    assert journal.failures("cut off", KNOWN) == 0


def test_the_archive_is_written_after_each_step(
    campaign: Campaign, journal: Journal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = campaign.folder.parent / "archive.tar.gz"
    keeper = supervisor.Keeper(campaign.folder, True, archive)
    journal = Journal(campaign.folder / "steps-dry.jsonl")
    journal.describe(KNOWN | {"cuda": "none", "run": "now", "command": "python", "state": ""})
    for number, name in enumerate(("one", "two"), 1):
        started = journal.start(name, 60, KNOWN)
        keeper.update(journal)
        assert archive.exists() == (number > 1)
        journal.write(started, "finished")
        keeper.update(journal)
        with tarfile.open(archive) as tar:
            names = tar.getnames()
            report = tar.extractfile("report-dry.md").read().decode()  # type: ignore[union-attr]
        assert {"steps-dry.jsonl", "machine-dry.jsonl", "report-dry.md"} <= set(names)
        assert f"| {name} | finished |" in report
        before = archive.stat().st_mtime_ns
        keeper.update(journal)
        assert archive.stat().st_mtime_ns == before  # nothing has ended since
    monkeypatch.setattr(supervisor, "_ARCHIVE_S", 0.0)
    (campaign.folder / "kernels-dry.csv").write_text("model,size\n")  # the rows of a step that runs for long
    keeper.update(journal)
    with tarfile.open(archive) as tar:
        assert "kernels-dry.csv" in tar.getnames()
    before = archive.stat().st_mtime_ns

    def broken(*_: object) -> None:
        raise ValueError("half a row")

    monkeypatch.setattr("benchmarks.gpu.report.write_report", broken)
    journal.write(journal.start("three", 60, KNOWN), "finished")
    keeper.update(journal)  # a row that is being written does not end the campaign
    assert archive.stat().st_mtime_ns != before
    assert "no report yet: ValueError" in capsys.readouterr().out


def test_wrong_words_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--dry", "--list", "--only", "nothing", "--out", str(tmp_path)])
    assert "kernel checks" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        program.main(["--dry", "--out", str(tmp_path / "file")])
    assert "is not a folder" in capsys.readouterr().err


def test_the_plan_of_a_gpu_is_listed_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--list", "--minutes", "9", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "end_to_end DINOv3-7B 1024x2048 batch 1: does not fit" in said
    assert "basis" not in said.splitlines()[0]
    assert not (tmp_path / "out").exists()


def test_every_step_of_the_dry_run_is_a_step_of_the_real_one() -> None:
    assert listed.all_steps is all_steps
    real = {step.name for step in all_steps(False)}
    assert {step.name for step in all_steps(True)} <= real


def test_what_travels_to_a_gpu_machine_is_small() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 60 * 2**20


def start(out: Path, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def children(out: Path) -> list[int]:
    """Processes that a campaign in this folder has started."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        started = b"--worker" in words or any(word.startswith(b"benchmarks.gpu.compile") for word in words)
        if started and any(str(out).encode() in word for word in words):
            found.append(int(process.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are listed by /proc")
def test_nothing_outlives_the_supervisor_that_is_killed_and_the_next_run_resumes(tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar.gz"
    process = start(tmp_path / "out", "--only", "checks of bf16", "--archive", str(archive))
    deadline = time.monotonic() + 60
    while not children(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children(tmp_path)
    time.sleep(random.Random(os.getpid()).uniform(0, 4))  # while it imports, or works
    process.send_signal(signal.SIGKILL)
    process.wait()
    while children(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children(tmp_path)
    again = start(tmp_path / "out", "--only", "checks of bf16", "--archive", str(archive))
    said = again.communicate(timeout=240)[0].decode()
    assert again.returncode == 0, said
    rows = read_rows(tmp_path / "out" / "kernels-checks-dry.csv")
    keys = [tuple(row[name] for name in CHECK_KEY) for row in rows]
    assert len(keys) == len(set(keys)) == 9
    assert "expected s actual s" in " ".join(said.split())
    with tarfile.open(archive) as tar:
        assert "kernels-checks-dry.csv" in tar.getnames()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_moments_it_loses_and_doubles_no_row(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, "--minutes", "25").wait(1500) == 0
    rng = random.Random(os.getpid())
    for _ in range(5):
        process = start(cut, "--minutes", "25", "--archive", str(tmp_path / "cut.tar.gz"))
        try:
            process.wait(rng.uniform(5, 60))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if (tmp_path / "cut.tar.gz").exists():
            with tarfile.open(tmp_path / "cut.tar.gz") as tar:
                assert tar.getnames()
    assert start(cut, "--minutes", "25").wait(1500) == 0
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
        ended = {each["step"] for each in events if each["event"] in ("finished", "skipped")}
        assert ended == {step.name for step in all_steps(dry=True)}
        assert not [each for each in events if each["event"] in ("failed", "died", "overran")]
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
