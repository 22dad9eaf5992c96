"""The breakdown on a tiny model: what a profile is split into, what is written, and when a step is done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks.breakdown import measure as breakdown
from benchmarks.breakdown import profile as breakdown_profile
from benchmarks.breakdown.kinds import (
    CONVOLUTION,
    FULL,
    LINEAR,
    NORM,
    POINTWISE,
    PRODUCT,
    WINDOW,
    Kernel,
    Profile,
    kind_of,
)
from benchmarks.breakdown.measure import SUBJECTS, Subject, main, steps, subject
from benchmarks.breakdown.profile import profiled, split
from benchmarks.end_to_end.models import MODELS
from benchmarks.gpu.campaign import Campaign
from benchmarks.whole_plans.plain_vit import PlainViT
from tests.upstream import runs_dinov3_without_data
from tests.zoo.quick import sweep

CPU, CUDA = DeviceType.CPU, DeviceType.CUDA
KNOWN = {"device": "a CPU", "torch": torch.__version__, "code": "12345678", "dry": "True"}


def event(name: str, start: float, end: float, device: DeviceType = CUDA, annotation: bool = False) -> SimpleNamespace:
    """A FunctionEvent as far as it is read."""
    place = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(
        name=name, time_range=place, device_type=device, is_user_annotation=annotation, self_cpu_time_total=end - start
    )


def mark(start: float, end: float) -> list[SimpleNamespace]:
    """A call as the profiler lists it: on the host and, where its kernels ran, on the device."""
    name = breakdown_profile._MARK
    return [event(name, start, end, CPU, annotation=True), event(name, start + 5, end - 5, CUDA, annotation=True)]


def test_kernels_go_to_their_calls_and_gaps_are_what_no_stream_fills() -> None:
    events = [
        event("too early", 0, 40),
        *mark(10_000, 11_000),
        event("aten::mm", 10_010, 10_020, CPU),
        event("compiled region", 10_100, 10_900, annotation=True),
        event("b", 10_300, 10_500),
        event("a", 10_100, 10_200),
        event("other stream", 10_150, 10_250),
        *mark(20_000, 21_000),
        event("a", 19_999, 20_100),  # a little before its mark: the clocks are two
    ]
    first, second = split(events, on_gpu=True)
    assert first is not None
    assert second is not None
    assert [kernel.name for kernel in first.kernels] == ["a", "other stream", "b"]
    assert first.wall_ms == pytest.approx(0.4)
    assert first.gaps_ms == pytest.approx(0.05)
    assert [(kernel.name, kernel.us) for kernel in second.kernels] == [("a", 101)]
    assert second.gaps_ms == 0


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_call_without_kernels_is_told(on_gpu: bool) -> None:
    device = CUDA if on_gpu else CPU
    first, second = split([*mark(10_000, 11_000), event("a", 20_050, 20_060, device), *mark(20_000, 21_000)], on_gpu)
    assert first is None
    assert second is not None


def test_a_way_that_the_profiler_does_not_see_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    some = Profile(1, 0, (Kernel("a", 0, 1000),))
    monkeypatch.setattr(
        breakdown_profile, "split", lambda *_: [some] * breakdown_profile._CALLS + [None] * breakdown_profile._CALLS
    )
    assert profiled({"plain": tiny().call, "graph": tiny().call}, torch.device("cpu")) == {"plain": some}
    assert "sees no kernels of graph" in capsys.readouterr().out
    monkeypatch.setattr(breakdown_profile, "split", lambda *_: [None] * breakdown_profile._CALLS)
    with pytest.raises(RuntimeError, match="no kernel"):
        profiled({"plain": tiny().call}, torch.device("cpu"))


def tiny() -> Subject:
    model, images = PlainViT(2, 32, 2).eval().requires_grad_(False), torch.randn(1, 3, 48, 64)
    return Subject(lambda: model(images), "48x64", "float32", {})


def test_on_a_cpu_operators_take_the_place_of_kernels() -> None:
    found = profiled({"plain": tiny().call}, torch.device("cpu"))["plain"]
    kinds = [kind_of(kernel.name) for kernel in found.kernels]
    assert [kernel.name for kernel in found.kernels].count("aten::native_layer_norm") == 5
    assert {PRODUCT, FULL, NORM} <= set(kinds)
    assert found.wall_ms == pytest.approx(found.gaps_ms + sum(kernel.us for kernel in found.kernels) / 1e3)
    assert 0 <= found.gaps_ms < found.wall_ms


@runs_dinov3_without_data
def test_a_subject_is_a_model_of_the_end_to_end_benchmark_and_brings_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    small = MODELS["DINOv3-L"].shrunk()
    monkeypatch.setitem(MODELS, "DINOv3-L", small)
    monkeypatch.setattr(breakdown, "pixels", lambda *_: (20 * 16, 21 * 16))  # larger than a window
    found = subject("DINOv3-L", breakdown.HYBRID, torch.device("cpu"), dry=False)
    assert (found.size, found.dtype) == ("320x336", "bfloat16")
    numbers = {kind: len(each) for kind, each in found.work.items()}
    mixers = {FULL: 2, LINEAR: 1, WINDOW: 2}
    assert numbers == {PRODUCT: 4 * 5, NORM: 2 * 5, POINTWISE: 5, CONVOLUTION: 1} | mixers
    assert sum(mixers.values()) == small.depth
    assert found.work[CONVOLUTION][0].flops == 2 * 20 * 21 * 3 * 16 * 16 * small.width
    found.call()


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    monkeypatch.setattr(breakdown, "subject", lambda *_: tiny())
    monkeypatch.setenv("JETVIT_CACHE", str(tmp_path / "tuned"))  # the program names a folder where none is named
    return Campaign(tmp_path / "out", torch.device("cpu"), True, KNOWN)


def test_the_telling_models_come_first() -> None:
    found = steps(dry=False)
    assert [step.value for step in found] == sorted(step.value for step in found)
    assert len({step.name for step in found}) == len(found) == len(SUBJECTS)
    assert found[0].name == "breakdown DINOv3-L hybrid 2 FA"


def test_a_step_writes_its_record_and_picture_and_then_is_done(campaign: Campaign) -> None:
    step, other, *_ = steps(dry=True)
    assert not step.is_done(campaign)
    step.run(campaign, 0)  # there is no time left
    assert not campaign.folder.exists()
    step.run(campaign, 60)
    assert {path.name for path in campaign.folder.iterdir()} == {
        "breakdown-dinov3-l-hybrid-2-fa-dry.json",
        "breakdown-dinov3-l-hybrid-2-fa-dry.png",
    }
    assert step.is_done(campaign)
    assert not other.is_done(campaign)
    path = campaign.folder / "breakdown-dinov3-l-hybrid-2-fa-dry.json"
    written = json.loads(path.read_text())
    assert written["environment"] == KNOWN
    assert (written["model"], written["variant"], written["size"]) == ("DINOv3-L", "hybrid 2 FA", "48x64")
    assert (written["weights"], written["dtype"], written["batch"]) == ("random", "float32", 1)
    assert written["launched"] == "plain calls"
    assert written["ways"]["plain calls"] == {name: written[name] for name in ("event_ms", "wall_ms", "gaps_ms")}
    assert set(written["ceilings"]) == {"copy_tb_s", "gemm_tflop_s"}
    assert all(row["floor (computed), ms"] is None for row in written["kinds"])  # a dry run has none
    before = path.stat().st_mtime_ns
    step.run(campaign, 60)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("changed", sweep(["device", "torch", "code"], quick=["code"]))
def test_what_was_measured_elsewhere_is_not_done(campaign: Campaign, changed: str) -> None:
    step = steps(dry=True)[0]
    step.run(campaign, 60)
    assert not step.is_done(replace(campaign, known={**KNOWN, changed: "another"}))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"environment": 3}'])
def test_half_a_record_is_not_done(campaign: Campaign, content: str) -> None:
    campaign.folder.mkdir()
    (campaign.folder / "breakdown-dinov3-l-hybrid-2-fa-dry.json").write_text(content)
    assert not steps(dry=True)[0].is_done(campaign)


def test_the_command_measures_what_is_missing_and_shows_it(campaign, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["--dry", "--out", str(out)]) == 0
    assert len(list(out.glob("*.json"))) == len(list(out.glob("*.png"))) == len(SUBJECTS)
    known = json.loads(next(out.glob("*.json")).read_text())["environment"]
    assert {"device", "torch", "cuda", "triton", "jetvit", "code", "dry", "run", "command"} <= set(known)
    assert str(tmp_path) not in known["command"]
    capsys.readouterr()
    assert main(["--dry", "--out", str(out)]) == 0
    assert "breakdown" not in capsys.readouterr().out
    assert main(["--show", str(out / "breakdown-dinov3-b-hybrid-2-fa-dry.json")]) == 0
    assert "matrix product" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--show", str(out / "absent.json")])
    assert "absent.json" in capsys.readouterr().err


@pytest.mark.slow
def test_one_that_fails_does_not_keep_the_others(campaign, tmp_path, capsys, monkeypatch) -> None:
    def subject(model: str, *_: object) -> Subject:
        if model == "DINOv3-B":
            raise RuntimeError("out of memory")
        return tiny()

    monkeypatch.setattr(breakdown, "subject", subject)
    assert main(["--dry", "--out", str(tmp_path / "out")]) == 1
    assert "failed: RuntimeError: out of memory" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.json"))) == len(SUBJECTS) - 1


def test_no_model_is_begun_after_the_time(campaign, tmp_path, capsys) -> None:
    assert main(["--dry", "--minutes", "0", "--out", str(tmp_path / "out")]) == 0
    assert "the time is over" in capsys.readouterr().out
    assert not list(tmp_path.glob("out/*"))
