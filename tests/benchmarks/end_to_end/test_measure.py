"""The end-to-end benchmark on small models: its order, its rows, and what it does when it is killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.end_to_end import cases as end_to_end_cases
from benchmarks.end_to_end.cases import COLUMNS, KEY, Case
from benchmarks.end_to_end.measure import main, steps
from benchmarks.end_to_end.models import MODELS, PAPER_SIZE
from benchmarks.end_to_end.variants import ANCHOR, FIRST, VARIANTS, Ready, Subject, Variant
from benchmarks.gpu.campaign import Campaign, campaign_of
from benchmarks.kernels.group import DeviceLost
from benchmarks.kernels.rows import read_rows

ROOT = Path(__file__).resolve().parents[3]
HYBRID = VARIANTS["hybrid 2 FA"]
CASE = Case("DINOv3-B", PAPER_SIZE, 1, (ANCHOR, *FIRST[1:3]))
Make = Callable[[Variant, Subject], Ready]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program names a folder for what tuning measures, where none is named."""
    monkeypatch.setenv("JETVIT_CACHE", str(tmp_path / "tuned"))


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return campaign_of(tmp_path, dry=True)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Variants are not run, only noted; each takes 2 ms but for the anchor's 3."""
    names: list[str] = []

    def make(variant: Variant, subject: Subject) -> Ready:
        names.append(variant.name)
        return Ready(lambda: 3.0 if variant == ANCHOR else 2.0, "clock", 1.0, None, 0.01)

    monkeypatch.setattr(end_to_end_cases, "make_ready", make)
    return names


def replace_make(monkeypatch: pytest.MonkeyPatch, change: Callable[[Variant, Make, Subject], Ready]) -> None:
    before = end_to_end_cases.make_ready
    monkeypatch.setattr(end_to_end_cases, "make_ready", lambda variant, subject: change(variant, before, subject))


def rows(campaign: Campaign) -> list[dict[str, str]]:
    return read_rows(campaign.path("end_to_end.csv"))


def keys(found: list[dict[str, str]]) -> list[tuple[str, ...]]:
    return sorted(tuple(row[name] for name in KEY) for row in found)


def test_the_most_telling_steps_come_first_and_each_is_one_case() -> None:
    found = steps(dry=False)
    assert len({step.name for step in found}) == len(found)
    assert [step.value for step in found] == sorted(step.value for step in found)
    assert [step.name for step in found[:3]] == [
        f"end_to_end {name} 1024x2048 batch 1" for name in ("DINOv3-L", "DepthAnythingV2-L", "DINOv3-B")
    ]
    cases = [step.run.args[0] for step in found]  # type: ignore[attr-defined]
    assert {case.model for case in cases} == set(MODELS)
    timed = [(case.model, case.size, case.batch, each.name) for case in cases for each in case.variants]
    assert len(timed) == len(set(timed))
    assert {case.batch for case in cases} == {1, 2, 4, 8, 16}
    dry = [each for step in steps(dry=True) for each in step.run.args[0].variants]  # type: ignore[attr-defined]
    assert {each.name for each in dry} == VARIANTS.keys()


def test_costs_grow_with_depth_and_variants_and_are_less_with_warm_caches() -> None:
    costs = {step.name.removeprefix("end_to_end "): step.cost for step in steps(dry=False)}
    first = {model: costs[f"{model} 1024x2048 batch 1"] for model in MODELS}
    assert first["DINOv3-B"].cold_s < first["DINOv3-L"].cold_s < first["DINOv3-7B"].cold_s
    assert first["DINOv3-L"].cold_s < costs["DINOv3-L 1024x2048 batch 1 next"].cold_s
    assert all(0 < cost.warm_s < cost.cold_s for cost in costs.values())


def test_duplicates_on_hopper_do_not_come_first() -> None:
    """torch 2.11 prefers cuDNN there by itself: "compiled cudnn" repeats "compiled"."""
    assert not any("cudnn" in each.name for step in steps(dry=False)[:5] for each in step.run.args[0].variants)  # type: ignore[attr-defined]


# A quick run goes through the same steps one by one, in the tests below.
@pytest.mark.slow
def test_dry_run_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "DepthAnythingV2-L,batch 2"
    assert main(["--dry", "--out", str(tmp_path), "--only", words]) == 0
    found = read_rows(tmp_path / "end_to_end-dry.csv")
    assert [row["variant"] for row in found] == ["compiled", "eager flash", "hybrid 2 FA", "compiled", "hybrid 2 FA"]
    for row in found:
        assert row["status"] == "ok"
        assert row["dry"] == "True"
        assert row["dtype"] == "fp32"
        assert row["weights"] == "random"
        assert float(row["q25_ms"]) <= float(row["median_ms"]) <= float(row["q75_ms"])
        assert float(row["difference"]) < 1e-4
        assert float(row["images_per_s"]) == pytest.approx(1e3 * int(row["batch"]) / float(row["median_ms"]), rel=1e-3)
        assert (row["ratio"] == "") == (row["variant"] == "compiled")
        assert all(row[name] for name in ("time", "command", "device", "code", "grid", "tokens", "full_blocks"))
        if row["ratio"]:
            assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
    assert found[2]["full_blocks"] == "2 3"
    assert found[2]["size"] == "70x98"
    capsys.readouterr()
    assert main(["--dry", "--out", str(tmp_path), "--only", words]) == 0
    assert capsys.readouterr().out == ""  # there is nothing left to do
    assert read_rows(tmp_path / "end_to_end-dry.csv") == found


@pytest.mark.slow
def test_a_later_run_times_what_is_missing_against_the_anchor(campaign: Campaign, made: list[str]) -> None:
    assert not end_to_end_cases.is_done(CASE, campaign)
    end_to_end_cases.run(Case("DINOv3-B", PAPER_SIZE, 1, CASE.variants[:2]), campaign, 60)
    assert not end_to_end_cases.is_done(CASE, campaign)
    assert made == ["compiled", "eager flash"]
    end_to_end_cases.run(CASE, campaign, 60)
    assert made[2:] == ["hybrid 2 FA", "compiled"]
    assert end_to_end_cases.is_done(CASE, campaign)
    assert rows(campaign)[-1]["ratio"] == "1.5"
    assert rows(campaign)[-1]["anchor_ms"] == "3"
    end_to_end_cases.run(CASE, campaign, 60)
    assert len(made) == 4


@pytest.mark.slow
def test_a_row_that_was_cut_off_is_measured_again(campaign: Campaign, made: list[str]) -> None:
    end_to_end_cases.run(CASE, campaign, 60)
    path, whole = campaign.path("end_to_end.csv"), rows(campaign)
    path.write_bytes(path.read_bytes()[:-9])
    assert not end_to_end_cases.is_done(CASE, campaign)
    end_to_end_cases.run(CASE, campaign, 60)
    assert keys(rows(campaign)) == keys(whole)


def test_no_variant_begins_after_its_time(campaign: Campaign, made: list[str]) -> None:
    end_to_end_cases.run(CASE, campaign, -1)
    assert not made
    assert not end_to_end_cases.is_done(CASE, campaign)
    assert main(["--dry", "--out", str(campaign.folder), "--minutes", "0"]) == 0
    assert not made


def test_what_kills_the_process_twice_is_not_tried_again(
    campaign: Campaign, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(variant: Variant, make: Make, subject: Subject) -> Ready:
        if variant == HYBRID:
            raise KeyboardInterrupt  # ends the process, and leaves no row
        return make(variant, subject)

    replace_make(monkeypatch, die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            end_to_end_cases.run(CASE, campaign, 60)
    with campaign.path("end_to_end-attempts.jsonl").open("a") as file:
        file.write('["cut o')
    end_to_end_cases.run(CASE, campaign, 60)
    assert [row["status"] for row in rows(campaign)] == ["ok", "ok", "unsupported"]
    assert "died or was stopped twice" in rows(campaign)[-1]["reason"]
    assert end_to_end_cases.is_done(CASE, campaign)


def test_a_failure_is_a_row_and_the_rest_goes_on_without_an_anchor(
    campaign: Campaign, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(variant: Variant, make: Make, subject: Subject) -> Ready:
        if variant == ANCHOR:
            try:
                raise torch.OutOfMemoryError("no 90 GB")
            except torch.OutOfMemoryError as error:
                raise torch._dynamo.exc.BackendCompilerFailed(print, error, None) from error
        return make(variant, subject)

    replace_make(monkeypatch, fail)
    end_to_end_cases.run(CASE, campaign, 60)
    first, *others = rows(campaign)
    assert (first["status"], first["reason"]) == ("out of memory", "OutOfMemoryError: no 90 GB")
    assert [(row["status"], row["ratio"]) for row in others] == [("ok", "")] * 2


def test_an_output_that_differs_is_wrong_and_timed(
    campaign: Campaign, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Ready(lambda: 1.0, "clock", 1.0, None, float("nan"))
    monkeypatch.setattr(end_to_end_cases, "make_ready", lambda variant, subject: found)
    end_to_end_cases.run(CASE, campaign, 60)
    assert {row["status"] for row in rows(campaign)} == {"wrong"}
    assert all(row["median_ms"] == "1" for row in rows(campaign))


def test_a_lost_device_ends_the_run_after_its_row(
    campaign: Campaign, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(device: torch.device, cause: Exception) -> None:
        raise DeviceLost("an illegal memory access") from cause

    def fail(variant: Variant, make: Make, subject: Subject) -> Ready:
        raise RuntimeError("an illegal memory access")

    replace_make(monkeypatch, fail)
    monkeypatch.setattr(end_to_end_cases, "assert_device", lose)
    assert main(["--dry", "--out", str(campaign.folder), "--only", "DINOv3-L"]) == 3
    assert [row["variant"] for row in rows(campaign)] == ["compiled"]


def test_rows_have_only_columns_of_the_table(campaign: Campaign) -> None:
    row = CASE.row(campaign, HYBRID)
    assert set(row) <= set(COLUMNS)
    assert set(KEY) <= set(row)


def test_words_that_no_step_has_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--dry", "--out", str(tmp_path), "--only", "ResNet"])
    assert "DINOv3-7B" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_no_row_and_doubles_none(tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "benchmarks.end_to_end", "--dry", "--out", str(out), "--only", "DINOv3-L,batch 2"]

    began = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True)
    took = time.monotonic() - began
    moment = random.Random()
    for _ in range(2):
        process = subprocess.Popen(command(tmp_path / "killed"), cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(moment.uniform(0.3, 0.9) * took)
        process.kill()
        process.wait()
    subprocess.run(command(tmp_path / "killed"), cwd=ROOT, check=True, capture_output=True)
    whole, found = (keys(read_rows(tmp_path / name / "end_to_end-dry.csv")) for name in ("whole", "killed"))
    assert found == whole
