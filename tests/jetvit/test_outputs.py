"""Outputs that exist are kept, unless `--force` is given, and one run at a time writes to each."""

from __future__ import annotations

from pathlib import Path

import pytest

from jetvit.cost_model import Plan
from jetvit.cost_model.files.lock import locked
from tests.jetvit.test_cli import SIZE, TINY, Run, pictures, plan, refused, run  # noqa: F401

# Refused before the model is loaded: there is no such model.
ABSENT = "timm:no_such_model"
WRITERS = {
    "optimize": ("optimize", ABSENT, "-o", "out.pt2"),
    "export": ("export", ABSENT, "--target", "onnx", "-o", "out.onnx"),
    "bench": ("bench", ABSENT, "-o", "out.json"),
    "explain": ("explain", ABSENT, "--html", "out.html"),
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_that_exists_is_kept(command: str, refused: Run, tmp_path: Path):  # noqa: F811
    *argv, name = WRITERS[command]
    out = tmp_path / name
    out.write_text("mine")
    message = refused(*argv, out).err
    assert message.startswith(f"error: {out} exists already\n")
    assert message.endswith("do: name another output, or replace it with --force\n")
    assert "has no model 'no_such_model'" in refused(*argv, out, "--force").err
    assert out.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_that_another_run_writes_is_refused(command: str, refused: Run, tmp_path: Path):  # noqa: F811
    *argv, name = WRITERS[command]
    with locked(tmp_path / name):
        for force in ([], ["--force"]):
            message = refused(*argv, tmp_path / name, *force).err
            assert message.startswith(f"error: cannot write {tmp_path / name}\n  why: another run writes to it")
    assert list(tmp_path.iterdir()) == []


def test_the_weights_beside_an_onnx_model_are_kept(refused: Run, tmp_path: Path):  # noqa: F811
    (tmp_path / "out.onnx.data").write_text("mine")
    message = refused("optimize", ABSENT, "-o", tmp_path / "out.onnx").err
    assert f"{tmp_path / 'out.onnx.data'} exists already" in message


def test_force_replaces_a_file(run: Run, tmp_path: Path):  # noqa: F811
    page = tmp_path / "out.html"
    page.write_text("old")
    assert run("explain", *TINY, *SIZE, "--html", page, "--force").status == 0
    assert page.read_text(encoding="utf-8").startswith("<!")


@pytest.mark.parametrize("command", ["calibrate", "search"])
def test_a_plan_goes_into_a_folder_of_its_own(
    command: str,
    refused: Run,  # noqa: F811
    plan: Path,  # noqa: F811
    pictures: Path,  # noqa: F811
    tmp_path: Path,
):
    option = ("--images",) if command == "calibrate" else ("--task", "features", "--data")
    argv = (command, ABSENT, *option, pictures)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("mine")
    for force in ([], ["--force"]):
        message = refused(*argv, "-o", tmp_path / "photos", *force).err
        assert "the folder holds other files: cat.jpg\n" in message
        assert f"do: name a new folder, such as {tmp_path / 'photos' / 'plan'}\n" in message
    Plan.load(plan).save(tmp_path / "old")
    assert f"error: {tmp_path / 'old'} exists already\n" in refused(*argv, "-o", tmp_path / "old").err
    assert "has no model" in refused(*argv, "-o", tmp_path / "old", "--force").err
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").touch()
    assert "has no model" in refused(*argv, "-o", tmp_path / "new").err
    with locked(tmp_path / "new"):
        assert "another run writes to it" in refused(*argv, "-o", tmp_path / "new").err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new", "old", "photos"]


def test_calibrate_replaces_a_plan_with_force(run: Run, plan: Path, pictures: Path, tmp_path: Path):  # noqa: F811
    Plan.load(plan).save(tmp_path / "plan")
    argv = ("calibrate", *TINY, *SIZE, "--images", pictures, "--max-drift", "9", "-o", tmp_path / "plan")
    assert run(*argv).status == 1
    assert Plan.load(tmp_path / "plan").provenance == {}
    assert run(*argv, "--force").status == 0
    assert "max_drift" in Plan.load(tmp_path / "plan").provenance


def test_the_demo_keeps_what_is_there(refused: Run, tmp_path: Path):  # noqa: F811
    (tmp_path / "report.html").write_text("mine")
    assert f"{tmp_path / 'report.html'} exists already" in refused("demo", "-o", tmp_path).err
