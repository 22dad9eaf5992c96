"""A disk or a memory that is full is named, and nothing is left half-written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from jetvit.cost_model.files.whole_file import refuse_full_disk, stream_for_cpp
from jetvit.files import require_space
from jetvit.patterns.errors import DiskFullError
from jetvit.search.calibration.run_folder import RunFolder
from tests.jetvit.test_cli import ROOT, SIZE, TINY, Run, pictures, plan, refused, run  # noqa: F401

HERE = "tests.jetvit.test_files_that_do_not_fit"
LIMIT = 6000


def too_large() -> nn.Module:
    torch.empty(2**55)
    raise AssertionError("there is so much memory")


@contextmanager
def small_files(size: int = LIMIT) -> Iterator[None]:
    """Within it no file becomes larger than `size`, as on a disk that is almost full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_program_that_does_not_fit_is_named(tmp_path: Path):
    """In a process of its own, for an error in C++ would end it."""
    code = (
        "import resource, sys; from jetvit.cli import main;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT},) * 2); sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "optimize", *TINY, *SIZE, "-o", str(tmp_path / "fast.pt2")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 1, found.stderr
    assert f"error: cannot write {tmp_path / 'fast.pt2'}\n  why: the disk is full (File too large" in found.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [
        ("export", *TINY, *SIZE, "--target", "onnx", "-o", "fast.onnx"),
        ("explain", *TINY, *SIZE, "--html", "report.html"),
    ],
)
def test_other_files_that_do_not_fit_are_named(
    argv: tuple[str, ...],
    refused: Run,  # noqa: F811
    tmp_path: Path,
):
    with small_files(1000):
        outcome = refused(*argv[:-1], tmp_path / argv[-1])
    assert f"error: cannot write {tmp_path / argv[-1]}\n  why: the disk is full (File too large" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_does_not_fit_is_named(
    refused: Run,  # noqa: F811
    pictures: Path,  # noqa: F811
    tmp_path: Path,
):
    argv = ("calibrate", *TINY, *SIZE, "--images", pictures, "--max-drift", "9", "--no-refit", "-o", tmp_path / "plan")
    with small_files(1500):  # more than the files of the run have
        outcome = refused(*argv)
    assert "error: the plan cannot be saved\n  why: [Errno 27] File too large" in outcome.err
    assert f"  where: {tmp_path / 'plan'}\n  do: free space, or write to another disk;" in outcome.err
    assert [each.name for each in tmp_path.iterdir()] == ["plan.run"]  # the same command resumes
    with small_files(600):
        outcome = refused(*argv[:-1], tmp_path / "other")
    assert "run.json\n  why: the disk is full (File too large)\n  do: free space; the same calibration" in outcome.err


def test_a_search_says_that_it_resumes(tmp_path: Path):
    folder = RunFolder(tmp_path / "run", {"seed": 0})
    with small_files(), pytest.raises(DiskFullError, match="the same search then resumes"):
        folder.save("head", {"weight": torch.zeros(LIMIT)}, {})
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["run.json"]


def test_an_interrupt_in_the_midst_of_a_file_of_torch_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    def write() -> None:
        with stream_for_cpp(tmp_path / "a") as stream:
            monkeypatch.setattr(stream, "file", type("Interrupted", (), {"write": interrupt})())
            assert stream.write(b"abc") == 3
            assert stream.write(b"de") == 2

    with pytest.raises(KeyboardInterrupt):
        write()


def test_a_file_larger_than_the_free_space_is_refused_beforehand(tmp_path: Path):
    require_space(tmp_path / "a", 1)
    with pytest.raises(DiskFullError, match="MB or more, and its disk has"):
        require_space(tmp_path / "a", 2**60)


def test_other_errors_pass(tmp_path: Path):
    with pytest.raises(PermissionError), refuse_full_disk(tmp_path):
        raise PermissionError("no")


@pytest.mark.parametrize("name", ["too_large"])
def test_memory_that_is_full_is_named(refused: Run, name: str):  # noqa: F811
    outcome = refused("explain", f"{HERE}:{name}", *SIZE)
    assert outcome.err.splitlines()[-3].startswith("error: out of memory")
    assert "you tried to allocate" in outcome.err
    assert "jetvit did not expect this" not in outcome.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device here")
def test_a_full_disk_behind_stdout():
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "jetvit", "measure", "--dry", "--minutes", "1"]
        found = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert found.returncode == 1
    assert "error: the disk is full" in found.stderr.splitlines()  # torch's build for CUDA may warn first
    assert "Exception ignored" not in found.stderr
