"""A calibration that was killed resumes with what it has measured, and makes the same plan."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import jetvit
from jetvit.cost_model import AttentionShape, Choice, Latency, Plan
from jetvit.cost_model.files.lock import locked
from jetvit.cost_model.measuring import steadiness
from jetvit.patterns.errors import InputError, JetvitError
from jetvit.search.calibration import model_latency
from jetvit.search.calibration.measurements import Measurements, alone_key, images_digest, remove_measurements
from jetvit.search.calibration.run_folder import RunFolder
from tests.zoo import CASES

WINDOWS = [Choice("window", window=(2, 2)), Choice("window", window=(2, 3)), Choice("window", window=(9, 9))]


class Killed(Exception):
    """The end of a run at some measurement."""


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the timings by others at each call, on a quiet machine; returns the calls."""
    calls: list[str] = []

    def choices(choices: Sequence[Choice], shape: AttentionShape, **_: object) -> dict[Choice, Latency]:
        calls.append("choices")
        ms = {
            choice: 10.0 if choice.window is None else float(choice.window[0] * choice.window[1]) for choice in choices
        }
        return {choice: Latency(*[ms[choice] + 0.001 * len(calls)] * 3, 1) for choice in choices}

    def rounds(runs: Sequence[Any], count: int, **_: object) -> list[list[float]]:
        calls.append("whole")
        return [[100.0 + 0.01 * len(calls) - 5 * bool(number)] * 5 for number in range(len(runs))]

    monkeypatch.setattr(model_latency, "measure_choices", choices)
    monkeypatch.setattr(model_latency, "in_rounds", rounds)
    monkeypatch.setattr(steadiness, "_waited_s", lambda: 0.0)
    return calls


def images(count: int = 4) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    case = CASES["timm_vit_fused"]
    args, _ = case.inputs(batch=count, size=case.size)
    return case.build(), list(args[0].split(1))


def calibrated(folder: Path | None, **changes: Any) -> Plan:
    model, batches = images()
    asked = {"max_drift": 0.2, "choices": WINDOWS, "folder": folder} | changes
    return jetvit.calibrate(model, changes.pop("batches", batches), **asked)


def what_it_says(plan: Plan) -> dict[str, Any]:
    passing = ("date", "calibration_seconds")
    return {name: value for name, value in plan.provenance.items() if name not in passing}


def killed_at(monkeypatch: pytest.MonkeyPatch, folder: Path, row: int) -> None:
    """Run a calibration that is killed when it would keep its `row`-th new measurement."""
    numbers, keep = itertools.count(1), RunFolder.add_row

    def add_row(self: RunFolder, name: str, value: Any) -> None:
        if next(numbers) == row:
            raise Killed
        keep(self, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "add_row", add_row)
        with pytest.raises(Killed):
            calibrated(folder)


def keys_of(folder: Path) -> list[str]:
    return [json.loads(line)["key"] for line in (folder / "measurements.jsonl").read_text().splitlines()]


def test_the_plan_is_that_of_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: list[str], caplog: pytest.LogCaptureFixture
):
    """Killed in the drifts of single choices, in those of whole plans and before the last timing."""
    caplog.set_level(logging.INFO, "jetvit.search")
    without = calibrated(None)
    timed.clear()
    whole = calibrated(tmp_path / "whole")
    assert [site.choice for site in whole.sites] == [site.choice for site in without.sites]
    assert "resumes" not in caplog.text
    every = keys_of(tmp_path / "whole")
    assert len(set(every)) == len(every)
    timed.clear()
    for row in (4, 6, len(every) - 9):
        killed_at(monkeypatch, tmp_path / "killed", row)
    found = calibrated(tmp_path / "killed")
    assert what_it_says(found) == what_it_says(whole)
    assert (found.sites, found.front) == (whole.sites, whole.front)
    assert sorted(keys_of(tmp_path / "killed")) == sorted(every)
    assert timed.count("choices") == 2  # of the only shape, and full attention once more
    told = [record.message for record in caplog.records if "resumes" in record.message]
    assert len(told) == 3
    assert f"the calibration in {tmp_path / 'killed'} resumes: latencies of choices, 2 of 8 drifts of" in told[0]
    assert re.search(r"7 of 8 drifts of single choices, 0 drifts of whole plans and 0 timings", told[1])


def test_a_calibration_that_is_done_measures_nothing(tmp_path: Path, timed: list[str]):
    steps: list[str] = []
    first = calibrated(tmp_path)
    timed.clear()
    again = calibrated(tmp_path, progress=lambda what, *_: steps.append(what))
    assert what_it_says(again) == what_it_says(first)
    assert timed == []
    assert set(steps) == {"running the original model"}
    assert again.provenance["calibration_seconds"] >= first.provenance["calibration_seconds"] - 0.1


def test_timings_of_a_busy_machine_are_not_kept(tmp_path: Path, timed: list[str], monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(steadiness.CoreWait, "doubts", lambda self: iter(["it waited"]))
        assert calibrated(tmp_path).provenance["confirmed"] is False
    assert {key.partition(" ")[0] for key in keys_of(tmp_path)} == {"alone", "joint"}
    assert calibrated(tmp_path).provenance["confirmed"] is True


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"max_drift": 0.1}, "max_drift is 0.1, and was 0.2"),
        ({"budget": 0.9}, 'budget is "0.9", and was null'),
        ({"choices": WINDOWS[:1]}, "choices is "),
        ({"output": 0}, "output is 0, and was null"),
        ({"metric": lambda ours, theirs: 0.0}, 'metric is "<lambda>", and was "drift"'),
    ],
)
def test_other_options_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], what: str):
    model, batches = images()
    jetvit.calibrate(model, batches, 0.2, choices=WINDOWS, folder=tmp_path)
    before = keys_of(tmp_path)
    with pytest.raises(InputError, match="the folder holds another calibration") as error:
        jetvit.calibrate(model, batches, **({"max_drift": 0.2, "choices": WINDOWS, "folder": tmp_path} | changes))
    assert str(error.value.why).startswith(what)
    assert keys_of(tmp_path) == before


def test_another_model_and_other_images_are_refused_by_name(tmp_path: Path):
    model, batches = images()

    def call() -> None:
        jetvit.calibrate(model, batches, 0.2, choices=WINDOWS, folder=tmp_path)

    call()
    batches[1][0, 0, 0, 0] += 1
    with pytest.raises(InputError, match="another calibration") as error:
        call()
    assert str(error.value.why).startswith("images is ")
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(InputError, match="another calibration") as error:
        call()
    assert str(error.value.why).startswith("weights is ")
    with locked(tmp_path), pytest.raises(InputError, match="cannot write"):
        call()


def test_what_is_refused_leaves_no_folder(tmp_path: Path):
    with pytest.raises(JetvitError, match="there is no output 7"):
        calibrated(tmp_path / "run", output=7)
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_out_is_said_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "jetvit.search")
    calibrated(None, max_drift=1e-9, refit=False)
    told = [record.message for record in caplog.records if record.name.startswith("jetvit.search")]
    assert told == [
        "not tried, because the window holds the whole grid: window 9x9 at 2 of 2 attentions",
        "2 of 4 choices are not part of any plan: alone they drift more than 10 times the bound",
    ]
    caplog.clear()
    calibrated(None, max_drift=100.0, refit=False)
    told = [record.message for record in caplog.records if record.name.startswith("jetvit.search")]
    assert len(told) == len(set(told))


def test_measurements_are_floats_to_the_last_digit(tmp_path: Path):
    kept = Measurements(RunFolder(tmp_path, {}))
    values = [0.1 + 0.2, 1e-310, float("inf"), 3.0]
    kept.keep(alone_key("a.b", WINDOWS[0], 3), values)
    again = Measurements(RunFolder(tmp_path, {}))
    assert again[alone_key("a.b", WINDOWS[0], 3)] == values
    assert alone_key("a.b", WINDOWS[0], 2) not in again
    (tmp_path / "mine").touch()
    remove_measurements(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_the_digest_tells_images_apart():
    image = torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16)
    batches = [((image,), {}), ((image.float(),), {}), ((image,), {"size": (4, 4)}), ((image.mT + 1,), {})]
    assert len({images_digest([batch]) for batch in batches}) == len(batches)
    assert images_digest([batches[0]]) == images_digest([((image.clone(),), {})])
