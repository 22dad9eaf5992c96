"""A refit brings a converted model nearer to the original, and leaves alone what needs nothing."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch

import jetvit
from jetvit.cost_model import AttentionShape, Choice, Latency
from jetvit.cost_model.measuring import steadiness
from jetvit.passes.frontends.capture import export_model
from jetvit.search import check_plan
from jetvit.search.calibration import model_latency
from jetvit.search.calibration.model_latency import MeasuredHere, WholeLatencies
from jetvit.search.calibration.refit import refit
from jetvit.search.calibration.refits import Refits
from jetvit.search.calibration.split import Split
from jetvit.search.calibration.trial import Trial
from tests.zoo import CASES

WINDOW = Choice("window", window=(2, 2))
LINEAR = Choice("linear")
MODELS = ["sdpa", "hf_dinov3_sdpa"]


def batches(name: str, count: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    """Images with a slope each, so that their tokens have something in common."""
    case, made = CASES[name], []
    for number in range(count):
        (image, *others), kwargs = case.inputs(batch=1, dtype=dtype)
        generator = torch.Generator().manual_seed(number)
        shape = (1, image.shape[1], 1, 1)
        rows = torch.linspace(-1, 1, image.shape[2])[:, None] * torch.randn(shape, generator=generator)
        noise = torch.randn(image.shape, generator=generator)
        made.append((((rows + noise).to(dtype), *others), kwargs))
    return made


def trial(name: str, images: list[Any], dtype: torch.dtype = torch.float32) -> Trial:
    program = export_model(CASES[name].build().to(dtype), *images[0])
    return Trial(program, images[:4], held_out=images[4:8])


@pytest.mark.parametrize("choice", [WINDOW, LINEAR], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_whole_plan_drifts_less(name: str, choice: Choice) -> None:
    images = batches(name, 32)
    model = trial(name, images)
    chosen = {site.name: choice for site in model.sites}
    refits = Refits(model, images[8:])
    before = model.joint(chosen, weights={}, name="before")
    after = refits.best(chosen).drift
    assert after < before if choice == WINDOW else after <= before
    for each in refits.joint(chosen).fits.values():
        assert each.train <= each.before * (1 + 1e-6)
        assert each.held_out <= each.before * (1 + 1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_each_choice_alone_drifts_less(name: str) -> None:
    images = batches(name, 32)
    model = trial(name, images)
    options = {site.name: [WINDOW, LINEAR] for site in model.sites}
    before = model.alone(options)
    again = trial(name, images)
    again.own_weights = Refits(again, images[8:]).alone(options)
    after = again.alone(options)
    assert sum(sum(each.values()) for each in after.values()) < sum(sum(each.values()) for each in before.values())
    assert set(again.own_weights) == {(site, choice) for site, some in options.items() for choice in some}


def test_full_attention_stays_itself() -> None:
    images = batches("sdpa", 8)
    program = export_model(CASES["sdpa"].build(), *images[0])
    names = {name for name in program.state_dict if name.endswith("weight")}
    assert refit(program, program, images, names).weights == {}


def test_only_what_follows_a_converted_attention_is_refitted() -> None:
    images = batches("sdpa", 16)
    model = trial("sdpa", images)
    last = model.sites[-1]
    changed = Refits(model, images[8:]).joint({last.name: WINDOW}).weights
    assert set(changed) <= {last.projections.out.weight, last.projections.out.bias}
    assert changed


def test_weights_of_16_bits() -> None:
    images = batches("sdpa", 24, torch.bfloat16)
    model = trial("sdpa", images, torch.bfloat16)
    chosen = {site.name: WINDOW for site in model.sites}
    found = Refits(model, images[8:]).joint(chosen)
    assert {each.dtype for each in found.weights.values()} == {torch.bfloat16}
    assert model.joint(chosen, weights=found.weights, name="after") < model.joint(chosen, weights={}, name="before")


def test_a_refit_is_the_same_every_time() -> None:
    images = batches("sdpa", 16)
    first, second = (
        Refits(trial("sdpa", images), images[8:]).joint({site.name: WINDOW for site in trial("sdpa", images).sites})
        for _ in range(2)
    )
    for name, value in first.weights.items():
        assert torch.equal(value, second.weights[name])


def make_windows_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let windows be faster than full attention, which they are not in models as small as these."""

    def latencies(choices: Sequence[Choice], shape: AttentionShape, **_: object) -> dict[Choice, Latency]:
        return {choice: Latency(*[10.0 if choice.kind == "full" else 5.0] * 3, 1) for choice in choices}

    def whole(self: MeasuredHere, plans: Sequence[Mapping[str, Choice]]) -> WholeLatencies:
        return WholeLatencies(tuple((100.0 - 5 * len(plan),) * 5 for plan in ({}, *plans)))

    monkeypatch.setattr(model_latency, "measure_choices", latencies)
    monkeypatch.setattr(MeasuredHere, "whole", whole)
    monkeypatch.setattr(steadiness, "_waited_s", lambda: 0.0)  # of the machine that the tests run on


def test_calibrate_refits_by_default(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make_windows_faster(monkeypatch)
    images = batches("sdpa", 32)
    model = CASES["sdpa"].build()
    call = partial(jetvit.calibrate, model, images, 1e9, choices=[WINDOW])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = call(folder=tmp_path / "run")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    record = plan.provenance
    assert record["refit"] is True
    assert record["images_fitted"] == 16
    assert record["images_selection"] == record["images_held_out"] == 8
    assert plan.weights
    assert record["joint_drift_held_out"] < record["joint_drift_held_out_before_refit"]
    held_out = Split.of(images, True).held_out
    assert check_plan(model, plan, held_out).drift == pytest.approx(record["joint_drift_held_out"], rel=1e-3)
    assert {each["weight"] for each in record["refits"]} >= {name for name in plan.weights if name.endswith("weight")}
    plan.save(tmp_path / "plan")
    again = call(folder=tmp_path / "run")
    assert [site.choice for site in again.sites] == [site.choice for site in plan.sites]
    assert all(torch.equal(value, again.weights[name]) for name, value in plan.weights.items())


def test_too_few_images_are_named(caplog: pytest.LogCaptureFixture) -> None:
    plan = jetvit.calibrate(CASES["sdpa"].build(), batches("sdpa", 4), 1e9, choices=[WINDOW])
    assert "nothing is refitted: a refit needs 8 batches of images or more, and there are 4" in caplog.text
    assert plan.provenance["refit"] is False
    assert not plan.weights


def test_the_split_keeps_the_order() -> None:
    images = batches("sdpa", 11)
    split = Split.of(images, True)
    assert [*split.fitted, *split.selection, *split.held_out] == images
    assert (len(split.fitted), len(split.selection), len(split.held_out)) == (5, 3, 3)
    plain = Split.of(images, False)
    assert (plain.fitted, plain.selection, plain.held_out) == ([], images[0::2], images[1::2])
