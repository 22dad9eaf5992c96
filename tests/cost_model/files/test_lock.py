"""One run at a time writes to a file or folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jetvit.cost_model.files.lock import locked
from jetvit.patterns.errors import InputError

fcntl = pytest.importorskip("fcntl")
HOLD = """
import sys
from jetvit.cost_model.files.lock import locked
with locked(sys.argv[1]):
    print('held', flush=True)
    input()
"""


@pytest.mark.parametrize("exists", [False, True])
def test_a_second_run_is_refused_and_the_lock_leaves_nothing(tmp_path: Path, exists: bool):
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    before = list(tmp_path.iterdir())
    for _ in range(2):
        with locked(out):
            with pytest.raises(InputError, match="another run writes to it"), locked(out):
                pass
            with locked(tmp_path / "other"):
                pass
        assert list(tmp_path.iterdir()) == before


def test_a_process_that_was_killed_locks_nothing(tmp_path: Path):
    out = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="another run writes to it"), locked(out):
        pass
    holder.kill()
    holder.communicate()
    with locked(out):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_above_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"), locked(tmp_path / "file" / "out"):
        pass
