"""What is on the disk of a search: nothing is mixed, half written, or silently wrong."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from jetvit.patterns.errors import InputError
from jetvit.search.calibration.run_folder import METRICS, RunFolder, resume_message
from jetvit.search.post_training.train import Run, Schedule, Training


def test_another_configuration_is_refused_with_the_first_difference(tmp_path: Path):
    config = {"seed": 0, "sizes": [1, 2], "budget": None}
    RunFolder(tmp_path / "run", config)
    RunFolder(tmp_path / "run", {"seed": 0, "sizes": (1, 2), "budget": None})  # the same in JSON
    for other, why in (
        ({**config, "sizes": [1, 3], "budget": "1ms"}, "sizes is [1, 3], and was [1, 2]"),
        ({"seed": 0, "sizes": [1, 2], "budget": None, "new": 5}, "new is 5, and was null"),
        ({"sizes": [1, 2], "budget": None}, "seed is null, and was 0"),
    ):
        with pytest.raises(InputError, match="the folder holds another search") as error:
            RunFolder(tmp_path / "run", other)
        assert error.value.why == why
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == config


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="the search cannot keep its progress"):
        RunFolder(tmp_path / "file", {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_a_stage_is_read_as_it_was_saved(tmp_path: Path, dtype: torch.dtype):
    folder = RunFolder(tmp_path, {})
    assert folder.load("stage") is None
    shared = torch.arange(6).to(dtype)
    tensors = {"a": shared.reshape(2, 3).T, "b": shared, "c": nn.Parameter(torch.ones(2))}
    folder.save("stage", tensors, {"done": False, "seconds": [0.5]})
    kept = folder.load("stage")
    assert kept is not None
    assert kept[1] == {"done": False, "seconds": [0.5]}
    assert kept[0].keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(kept[0][name], value)
        assert kept[0][name].dtype == value.dtype


def test_a_damaged_stage_is_refused_by_name(tmp_path: Path):
    folder = RunFolder(tmp_path, {})
    folder.save("distillation", {"a": torch.zeros(100)}, {})
    file = tmp_path / "distillation.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", whole[:4], whole[:-1], b"\xff" * len(whole), whole.replace(b"record", b"rocerd")):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="the progress of distillation cannot be read") as error:
            folder.load("distillation")
        assert (error.value.where, error.value.do) == (str(file), "remove the file, and the stage begins anew")


def test_damaged_json_is_refused_by_name(tmp_path: Path):
    folder = RunFolder(tmp_path, {})
    assert folder.kept("latencies") is None
    folder.keep("latencies", {"a": [1.5]})
    assert folder.kept("latencies") == {"a": [1.5]}
    (tmp_path / "latencies.json").write_text('{"a": [1')
    with pytest.raises(InputError, match="latencies of the search cannot be read"):
        folder.kept("latencies")


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_an_evaluation_that_was_cut_off_never_was(tmp_path: Path, cut: int):
    folder = RunFolder(tmp_path, {})
    assert folder.evaluations() == []
    rows = [{"path": "a", "value": 0.1}, {"path": "b", "value": 1 / 3}, {"path": "c", "value": 3.0}]
    for row in rows:
        folder.evaluated(row)
    assert folder.evaluations() == rows
    file = tmp_path / "evaluations.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    reader = RunFolder(tmp_path, {}, writes=False)
    assert reader.evaluations() == rows[:2]
    assert not file.read_text().endswith("\n"), "one that does not write has written"
    assert folder.evaluations() == rows[:2]
    folder.evaluated(rows[2])  # on a line of its own
    assert folder.evaluations() == rows
    file.write_text("{\n" + file.read_text())
    with pytest.raises(InputError, match="the evaluations of the search cannot be read"):
        folder.evaluations()


def test_where_a_search_resumes(tmp_path: Path):
    folder = RunFolder(tmp_path, {})
    assert not folder.resumed
    for time, (stage, done, steps) in enumerate((("task", False, 2), ("local_distillation", True, 3))):
        folder.save(stage, {}, {"done": done, "seconds": [0.5] * steps})
        os.utime(tmp_path / f"{stage}.safetensors", (100 - time, 100 - time))
    again = RunFolder(tmp_path, {})
    assert again.resumed
    assert again.stages() == [("local_distillation", True, 3), ("task", False, 2)]
    assert resume_message(again) == (
        f"the search in {tmp_path} resumes (done: local distillation; task resumes at step 3)"
    )


def test_one_that_does_not_write_leaves_nothing(tmp_path: Path):
    folder = RunFolder(tmp_path / "run", {}, writes=False)
    folder.save("stage", {"a": torch.zeros(1)}, {})
    folder.keep("a", 1)
    folder.metrics("stage", [(1, 0.5, 1.0, 0.1)])
    folder.evaluated({})
    assert list(tmp_path.iterdir()) == []


def rows_of(path: Path) -> list[list[str]]:
    with (path / "metrics.csv").open(newline="") as stream:
        return list(csv.reader(stream))


def test_metrics_have_no_step_twice_after_a_resume(tmp_path: Path):
    class Killed(Exception):
        pass

    def train(stage: str, kill: int | None) -> None:
        weight = nn.Parameter(torch.ones(1))

        def step(number: int) -> dict[str, float]:
            if number == kill:
                raise Killed
            weight.sum().backward()
            return {"loss": float(number)}

        run = Run(folder=RunFolder(tmp_path, {}), save_every=2)
        Training(stage, Schedule(7, 0.1), {"group": {"weight": weight}}, (), run)(step)

    train("first", None)
    for kill in (3, 5):
        with pytest.raises(Killed):
            train("second", kill)
    train("second", None)
    header, *rows = rows_of(tmp_path)
    assert tuple(header) == METRICS
    assert [(row[0], int(row[1])) for row in rows] == [(stage, n) for stage in ("first", "second") for n in range(1, 8)]
    assert [float(row[2]) for row in rows] == [0, 1, 2, 3, 4, 5, 6] * 2
    seconds = [float(row[4]) for row in rows[7:]]
    assert seconds == sorted(seconds), "the time of before the resume is counted"
