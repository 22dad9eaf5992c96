"""`jetvit measure`: what it writes and says, and that kills and interrupts lose and double nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from jetvit.cli import main
from jetvit.commands import measure as command
from jetvit.cost_model.measuring import steadiness
from jetvit.cost_model.measuring.measure import Outcome, measure_operation
from jetvit.cost_model.measuring.operation import OPS, Operation
from jetvit.cost_model.measuring.sweep import SMALL_MODELS, operations
from jetvit.cost_model.measuring.table import read_table

ROOT = Path(__file__).parents[2]
SMALL = ("--models", "ViT-Ti", "--sizes", "64x96,128x192", "--passes", "1")
EXPECTED = operations({"ViT-Ti": SMALL_MODELS["ViT-Ti"]}, [(64, 96), (128, 192)], dtypes=["float32"], gpu=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that take no time worth mentioning, on a quiet machine."""
    monkeypatch.setattr(measure_operation, "__kwdefaults__", {"time_limit_s": 0.0})
    monkeypatch.setattr(steadiness, "_waited_s", lambda: 0.0)


def measured(path: Path) -> list[Operation]:
    return [row.operation for row in read_table(path)]


def test_a_whole_run_and_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "t.csv"
    assert main(["measure", *SMALL, "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {len(EXPECTED)} rows to {path}\n"
    assert sorted(map(str, measured(path))) == sorted(map(str, EXPECTED))
    assert {each.op for each in measured(path)} == set(OPS)
    assert main(["measure", *SMALL, "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote 0 rows to {path}\n{len(EXPECTED)} operations had enough already\n"
    assert main(["measure", *SMALL, "--passes", "2", "-o", str(path)]) == 0
    assert measured(path)[len(EXPECTED) :] == measured(path)[: len(EXPECTED)]


def test_the_table_is_named_after_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["measure", "--models", "ViT-Ti", "--sizes", "32x32"]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == read_table(path)[0].machine.file_name
    assert path.stem.endswith(f"-threads-{torch.get_num_threads()}")
    assert f" to {path.name}\n" in capsys.readouterr().out


def test_dry(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "t.csv"
    argv = ["measure", *SMALL, "-o", str(path), "--dry"]
    assert main([*argv, "--minutes", "0.1"]) == 0
    *listed, empty, first, second = capsys.readouterr().out.splitlines()
    assert empty == ""
    assert sorted(listed) == sorted(map(str, EXPECTED))
    assert first.endswith(f": {len(EXPECTED)} operations to measure, {len(EXPECTED)} rows in all; 0 in {path} already.")
    assert second.startswith("At about a second each 6 rows can be had in 0.1 min")
    assert not path.exists()
    assert main(argv[:-1]) == 0
    assert main(argv) == 0
    assert f": 0 operations to measure, 0 rows in all; {len(EXPECTED)} in {path} already." in capsys.readouterr().out


def test_the_seed_changes_the_order(capsys: pytest.CaptureFixture[str]):
    for seed in ("0", "0", "1"):
        assert main(["measure", *SMALL, "--dry", "--seed", seed]) == 0
    lists = capsys.readouterr().out.split("\n\n")
    first, second, third = (each.partition("min; very long ones take more.\n")[2] or each for each in lists[:3])
    assert first == second != third
    assert sorted(first.splitlines()) == sorted(third.splitlines())


def test_what_was_skipped_and_left_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def measure_all(*args: Any, **options: Any) -> Outcome:
        options["say"]("skipped it: out of memory")
        skipped = [(EXPECTED[0], "out of memory"), (EXPECTED[1], "out of memory"), (EXPECTED[2], "no kernel")]
        return Outcome(written=1, known=2, skipped=skipped, left=EXPECTED[3:5])

    monkeypatch.setattr(command, "measure_all", measure_all)
    assert main(["measure", *SMALL, "-o", str(tmp_path / "t.csv")]) == 0
    captured = capsys.readouterr()
    assert captured.err == "skipped it: out of memory\n"
    assert captured.out.splitlines() == [
        f"wrote 1 row to {tmp_path / 't.csv'}",
        "2 operations had enough already",
        "skipped 3, which this device cannot run:",
        "  2 × out of memory",
        "  1 × no kernel",
        "the time did not suffice for 2 more: the same command goes on with them",
    ]


def test_rows_of_a_busy_machine_are_left_out_and_measured_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "t.csv"
    waited = count()
    monkeypatch.setattr(steadiness, "_waited_s", lambda: 1e6 * next(waited))
    monkeypatch.setattr(steadiness, "_load", lambda: None)
    assert main(["measure", *SMALL, "-o", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"wrote 0 rows to {path}\n"
    assert captured.err == (
        f"warning: {len(EXPECTED)} rows left out, for this machine was too busy at every attempt: the process waited "
        "for a core 100% of the time. Run the same command again when nothing else runs here: it "
        "measures what is missing\n"
    )
    monkeypatch.setattr(steadiness, "_waited_s", lambda: 0.0)
    assert main(["measure", *SMALL, "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {len(EXPECTED)} rows to {path}\n"


@pytest.mark.parametrize(
    ("argv", "words", "status"),
    [
        (["--minutes", "0"], "'0' is no time", 2),
        (["--minutes", "nan"], "'nan' is no time", 2),
        (["--models", "ViT-Ti,ViT-XL"], "'ViT-XL' is no model of the sweep: ViT-Ti, DINOv3-S, DINOv3-B", 2),
        (["--sizes", "512"], "'512' is no image size", 2),
        (["--batch", "1,0"], "'0' is no whole number of 1 or more", 2),
        (["--dtype", "float8"], "'float8' is none of float32, bfloat16, float16", 2),
        (["--device", "gpu"], "'gpu' is no device that can be measured", 1),
        (["--device", "meta"], "'meta' is no device that can be measured", 1),
        (["--device", "cuda:99"], "the device cuda:99 is not there", 1),
        (["--sizes", "8x512"], "an image of 8x512 has no whole patch of ViT-Ti", 1),
        (["-o", "none/t.csv"], "mkdir -p none", 1),
    ],
)
def test_refusals(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    words: str,
    status: int,
):
    monkeypatch.chdir(tmp_path)
    assert main(["measure", *argv]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_table_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    for argv in ([], ["--dry"]):
        assert main(["measure", *SMALL, "-o", str(path), *argv]) == 1
        assert f"{path}, line 1: " in capsys.readouterr().err
    assert path.read_text() == "my notes"


# The process

PROGRAM = """
import signal, sys, jetvit.cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
from jetvit.cost_model import steadiness
from jetvit.cost_model.measuring.measure import measure_operation
steadiness._waited_s = lambda: 0.0
measure_operation.__kwdefaults__["time_limit_s"] = float(sys.argv.pop(1))
sys.exit(jetvit.cli.main(sys.argv[1:]))
"""


def start(path: Path, row_s: float) -> subprocess.Popen[str]:
    """The command, with about `row_s` seconds a row: on a busy machine this process may notice a row late."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", PROGRAM, str(row_s), "measure", *SMALL, "-o", str(path)]
    return subprocess.Popen(argv, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_rows(process: subprocess.Popen[str], path: Path, rows: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") > rows:
            return
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_and_run_again_it_has_every_operation_once(tmp_path: Path):
    path, chance, kills, before = tmp_path / "t.csv", random.Random(0), 0, 0
    for _ in range(3):
        process = start(path, 0.3)
        wait_for_rows(process, path, before + chance.randrange(4))
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        rows = path.read_bytes().count(b"\n") - 1
        assert rows >= before  # nothing that was whole is lost
        before = rows
    assert kills >= 2
    with path.open("a") as file:  # as of a kill in the middle of a row
        file.write("1,Some CPU,")
    out, err = start(path, 0.0).communicate(timeout=120)
    assert "the last line was not finished, and is cut off" in err
    assert f"wrote {len(EXPECTED) - before} rows to {path}\n" in out
    assert sorted(map(str, measured(path))) == sorted(map(str, EXPECTED))


def test_an_interrupt_says_how_to_go_on(tmp_path: Path):
    path = tmp_path / "t.csv"
    process = start(path, 1.0)
    wait_for_rows(process, path, 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    rows = len(read_table(path))
    assert rows >= 2  # the third may have been in flight
    assert err.splitlines()[-2:] == [  # a torch that is built for CUDA may have warned before
        f"wrote {rows} rows to {path}; the same command goes on from there",
        "interrupted; nothing was left half-written",
    ]
