"""A file is written as a whole, or stays what it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jetvit.cost_model.files import whole_file
from jetvit.cost_model.files.whole_file import move_together, write_whole


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "file"
    write_whole(file, b"old")

    def full(handle: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(whole_file.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


WRITES = """
import sys
from pathlib import Path
from jetvit.cost_model.files.whole_file import move_together, write_whole
print("begin", flush=True)
while True:
    for letter in (b"a", b"b"):
        write_whole(Path(sys.argv[1]), letter * 3_000_000)
"""


def test_killed_while_it_writes_it_leaves_a_whole_file(tmp_path: Path):
    file = tmp_path / "file"
    write_whole(file, b"a" * 3_000_000)
    process = subprocess.Popen([sys.executable, "-c", WRITES, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    time.sleep(0.2 + os.getpid() % 7 / 100)
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -9
    data = file.read_bytes()
    assert len(data) == 3_000_000
    assert set(data) in ({ord("a")}, {ord("b")})


@pytest.mark.parametrize("failing", ["model", "weights", "more"])
@pytest.mark.parametrize("before", [True, False], ids=["old", "none"])
def test_files_are_moved_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, before: bool
) -> None:
    names = ("more", "weights", "model")
    staged = tmp_path / ".staged"
    staged.mkdir()
    for name in names:
        (staged / name).write_text("new")
        if before:
            (tmp_path / name).write_text("old")
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if self == staged / failing:
            raise OSError("disk full")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            move_together([staged / name for name in names], tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir() if file.is_file()} == (
        dict.fromkeys(names, "old") if before else {}
    )
    for name in names:
        (staged / name).write_text("newer")
    move_together([staged / name for name in names], tmp_path)
    assert {(tmp_path / name).read_text() for name in names} == {"newer"}
