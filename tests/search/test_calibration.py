"""Calibration on models of the zoo: the measurements are true, the bounds hold, and bad input is named."""

from __future__ import annotations

import math

import pytest
import torch

import jetvit
from jetvit.cost_model import AttentionShape, Choice, Latency, Plan
from jetvit.patterns.errors import InputError, JetvitError, PlanError
from jetvit.search import calibrate as calibrate_module_function
from jetvit.search import check_plan
from tests.zoo import CASES

WINDOWS = [Choice("window", window=(2, 2)), Choice("window", window=(2, 3))]


@pytest.fixture(autouse=True)
def _fixed_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """On shapes as small as these windows are no faster; let them be, so that there is something to choose."""

    def latencies(choices: list[Choice], shape: AttentionShape, **_: object) -> dict[Choice, Latency]:
        ms = {
            choice: 10.0 if choice.window is None else float(choice.window[0] * choice.window[1]) for choice in choices
        }
        return {choice: Latency(ms[choice], ms[choice], ms[choice], 1) for choice in choices}

    monkeypatch.setattr("jetvit.search.calibration.measure_choices", latencies)
    monkeypatch.setattr("jetvit.search.calibration._Trial.time_model", lambda self: 100.0)


def images(name: str, count: int = 4):
    case = CASES[name]
    args, kwargs = case.inputs(batch=count, size=case.size)
    batches = [
        (tuple(a[i : i + 1] if isinstance(a, torch.Tensor) else a for a in args),
         {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})
        for i in range(count)
    ]  # fmt: skip
    return case.build(), batches


@pytest.mark.parametrize("name", ["timm_vit_unfused", "hf_dinov3_eager", "hf_depth_anything_sdpa", "extra_both"])
def test_single_scores_are_those_of_the_rewritten_model(name: str):
    """What is scored from a cut in the middle of the graph equals the whole rewritten model, run from the image."""
    model, batches = images(name)
    plan = jetvit.calibrate(model, batches, max_drift=0.2, choices=WINDOWS)
    for site in plan.sites[:2]:
        for measured in site.measured[1:]:
            alone = Plan((type(site)(site.name, measured.choice),), plan.fingerprint)
            assert check_plan(model, alone, batches[0::2]).drift == pytest.approx(measured.drift, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("max_drift", [0.0, 0.01, 0.3, 100.0])
def test_the_bound_holds_on_the_choosing_images(max_drift: float):
    model, batches = images("timm_vit_fused")
    plan = jetvit.calibrate(model, batches, max_drift=max_drift, choices=WINDOWS)
    assert check_plan(model, plan, batches[0::2]).drift <= max_drift + 1e-6
    assert plan.provenance["joint_drift_selection"] <= max_drift
    held_out = check_plan(model, plan, batches[1::2]).drift
    assert plan.provenance["joint_drift_held_out"] == pytest.approx(held_out, rel=1e-3, abs=1e-7)
    changed = [site for site in plan.sites if site.choice.kind != "full"]
    assert len(changed) == (0 if max_drift == 0 else len(plan.sites) if max_drift == 100 else len(changed))


def test_the_plan_is_whole(tmp_path):
    model, batches = images("hf_dinov3_sdpa")
    steps: list[tuple[str, int, int]] = []
    plan = jetvit.calibrate(model, batches, max_drift=0.3, choices=WINDOWS, progress=lambda *step: steps.append(step))
    plan.save(tmp_path / "plan")
    assert Plan.load(tmp_path / "plan") == plan
    assert plan.size == CASES["hf_dinov3_sdpa"].size
    assert [len(site.measured) for site in plan.sites] == [3, 3]
    assert plan.provenance["images_selection"] == plan.provenance["images_held_out"] == 2
    assert plan.front[0].changed == 0
    assert all(0 < done <= total for _, done, total in steps)
    assert {"running the original model", "timing each choice", "trying each choice at each site"} <= {
        s for s, *_ in steps
    }
    fast = jetvit.optimize(model, *batches[0][0], kwargs=batches[0][1], plan=plan)
    assert isinstance(fast, torch.nn.Module)


def test_no_harm_to_the_model():
    model, batches = images("separate")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    output = model(*batches[0][0], **batches[0][1])
    jetvit.calibrate(model, batches, choices=WINDOWS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(*batches[0][0], **batches[0][1]), output)


def test_a_budget_asks_for_the_least_drift():
    model, batches = images("timm_vit_fused")
    with pytest.raises(PlanError, match="no plan meets the budget") as caught:
        jetvit.calibrate(model, batches, max_drift=100.0, budget="80ms", choices=WINDOWS)
    assert "the fastest plan" in str(caught.value)
    plan = jetvit.calibrate(model, batches, max_drift=100.0, budget="100000ms", choices=WINDOWS)
    assert all(site.choice.kind == "full" for site in plan.sites)


@pytest.mark.parametrize("budget", [0, -1, 1.5, "fast", "0ms", "nan"])
def test_a_budget_that_is_none(budget):
    model, batches = images("sdpa")
    with pytest.raises(InputError, match="is no budget"):
        jetvit.calibrate(model, batches, budget=budget, choices=WINDOWS)


def test_a_metric_of_the_user_replaces_drift():
    model, batches = images("sdpa")
    calls = []

    def harm(output: torch.Tensor, reference: torch.Tensor) -> float:
        calls.append(output.shape)
        return float((output - reference).abs().max())

    plan = jetvit.calibrate(model, batches, max_drift=1e9, metric=harm, choices=WINDOWS)
    assert calls
    assert plan.provenance["metric"] == "harm"
    assert all(site.choice.kind == "window" for site in plan.sites)


@pytest.mark.parametrize("output", [0, "features", lambda result: result["features"]])
def test_the_output_can_be_named(output):
    class Tapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = CASES["sdpa"].build()

        def forward(self, image):
            return {"features": self.inner(image), "size": torch.tensor(image.shape[-1])}

    _, batches = images("sdpa")
    assert jetvit.calibrate(Tapped(), batches, output=output, choices=WINDOWS).sites[0].drift is not None


def test_an_output_that_is_not_there():
    model, batches = images("sdpa")
    with pytest.raises(InputError, match="there is no output 7"):
        jetvit.calibrate(model, batches, output=7, choices=WINDOWS)


def test_nan_in_the_weights_is_named():
    model, batches = images("sdpa")
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(InputError, match="is not finite"):
        jetvit.calibrate(model, batches, choices=WINDOWS)


def test_no_images_and_images_of_two_sizes():
    model, batches = images("sdpa")
    with pytest.raises(InputError, match="no images"):
        jetvit.calibrate(model, [])
    larger = ((torch.randn(1, 3, 64, 64),), {})
    with pytest.raises(InputError, match="different shapes"):
        jetvit.calibrate(model, [batches[0], larger])


def test_a_pooled_output_of_one_image_is_refused_before_the_work():
    model, batches = images("sdpa")
    steps: list[str] = []
    with pytest.raises(InputError, match="does not vary"):
        jetvit.calibrate(
            model,
            batches[:2],
            output=lambda out: out.mean(1),
            choices=WINDOWS,
            progress=lambda what, *_: steps.append(what),
        )
    assert set(steps) == {"running the original model"}


def test_a_model_without_a_site_says_why():
    model, batches = images("hf_beit_sdpa")
    with pytest.raises(JetvitError, match="no full attention") as caught:
        jetvit.calibrate(model, batches)
    assert "bias" in str(caught.value)


def test_it_is_the_public_function():
    assert jetvit.calibrate is calibrate_module_function
