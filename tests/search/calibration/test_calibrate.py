"""Calibration on models of the zoo: the measurements are true, the bounds hold, and bad input is named."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

import jetvit
from jetvit.cost_model import AttentionShape, Choice, Latency, Plan
from jetvit.cost_model.measuring import steadiness
from jetvit.cost_model.measuring.graph_operations import graph_operations
from jetvit.cost_model.measuring.measurement import Measurement
from jetvit.cost_model.measuring.operation import ATTENTIONS, OPS, Operation
from jetvit.cost_model.measuring.runs import Mode
from jetvit.cost_model.measuring.site_operation import site_operation
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.cost_model.predicting.estimate import Overheads
from jetvit.cost_model.predicting.latencies import Latencies
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.pipeline import RewriteOptions, rewrite
from jetvit.patterns.errors import InputError, JetvitError, PlanError
from jetvit.search import calibrate as calibrate_module_function
from jetvit.search import check_plan
from jetvit.search.calibration import model_latency
from jetvit.search.calibration.model_latency import MeasuredHere, WholeLatencies
from tests.cost_model.tables import GPU, NOW
from tests.zoo import CASES
from tests.zoo.quick import sweep

FULL = Choice("full")
WINDOWS = [Choice("window", window=(2, 2)), Choice("window", window=(2, 3))]


REST_MS = 80.0


def fixed_ms(choice: Choice | None) -> float:
    """On shapes as small as these windows are no faster; let them be, so that there is something to choose."""
    return 10.0 if choice is None or choice.window is None else float(choice.window[0] * choice.window[1])


@pytest.fixture(autouse=True)
def _fixed_latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    def choices(choices: list[Choice], shape: AttentionShape, **_: object) -> dict[Choice, Latency]:
        return {choice: Latency(*[fixed_ms(choice)] * 3, 1) for choice in choices}

    def whole(self: MeasuredHere, plans: Sequence[Mapping[str, Choice]]) -> WholeLatencies:
        names = [site.name for site in self._trial.sites]
        took = [REST_MS + sum(fixed_ms(plan.get(name)) for name in names) for plan in ({}, *plans)]
        return WholeLatencies(tuple((ms,) * 5 for ms in took))

    monkeypatch.setattr(model_latency, "measure_choices", choices)
    monkeypatch.setattr(MeasuredHere, "whole", whole)
    monkeypatch.setattr(steadiness, "_waited_s", lambda: 0.0)  # of the machine that the tests run on


def images(name: str, count: int = 4):
    case = CASES[name]
    args, kwargs = case.inputs(batch=count, size=case.size)
    batches = [
        (tuple(a[i : i + 1] if isinstance(a, torch.Tensor) else a for a in args),
         {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()})
        for i in range(count)
    ]  # fmt: skip
    return case.build(), batches


@pytest.mark.parametrize(
    "name",
    sweep(
        ["timm_vit_unfused", "hf_dinov3_eager", "hf_depth_anything_sdpa", "extra_both"],
        quick=["timm_vit_unfused", "extra_both"],
    ),
)
def test_single_scores_are_those_of_the_rewritten_model(name: str):
    """What is scored from a cut in the middle of the graph equals the whole rewritten model, run from the image."""
    model, batches = images(name)
    plan = jetvit.calibrate(model, batches, max_drift=0.2, choices=WINDOWS)
    for site in plan.sites[:2]:
        for measured in site.measured[1:]:
            alone = Plan((type(site)(site.name, measured.choice),), plan.fingerprint)
            assert check_plan(model, alone, batches[0::2]).drift == pytest.approx(measured.drift, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("max_drift", sweep([0.0, 0.01, 0.3, 100.0], quick=[0.01, 100.0]))
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
    assert plan.front[0].latency_ms == 20.0
    assert plan.provenance["confirmed"] is True
    assert plan.provenance["eager_full_ms"] == 100.0
    assert plan.provenance["eager_plan_ms"] == REST_MS + sum(site.latency_ms for site in plan.sites)
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
    """Two blocks of 10 ms in a model of 100 ms: a window of 2x2 takes 4 ms, one of 2x3 6 ms."""
    model, batches = images("timm_vit_fused")
    assert len(jetvit.find_attention(model, *batches[0][0])) == 2
    with pytest.raises(PlanError, match="no plan meets the budget of 80ms") as caught:
        jetvit.calibrate(model, batches, max_drift=100.0, budget="80ms", choices=WINDOWS)
    assert "the full model takes 100.0 ms; the fastest plan with drift ≤ 100 takes about 88.0 ms" in str(caught.value)
    plan = jetvit.calibrate(model, batches, max_drift=100.0, budget="100000ms", choices=WINDOWS)
    assert all(site.choice.kind == "full" for site in plan.sites)
    plan = jetvit.calibrate(model, batches, max_drift=100.0, budget=0.94, choices=WINDOWS)
    assert plan.provenance["eager_plan_ms"] <= 94.0
    alone = [measured.drift for site in plan.sites for measured in site.measured if measured.latency_ms == 4.0]
    assert plan.provenance["joint_drift_selection"] <= min(alone) + 1e-9


@pytest.mark.parametrize("budget", [0, -1, 1.5, "fast", "0ms", "nan", "inf", "infms"])
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


def test_dynamic_is_refused_with_the_reason():
    with pytest.raises(InputError, match=r"(?s)those of one image size.*the plan fits the model"):
        jetvit.calibrate(*images("sdpa"), dynamic=True)


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


def whole_ms(monkeypatch: pytest.MonkeyPatch, samples: Callable[[Mapping[str, Choice], int], float]) -> list[int]:
    """Replaces what whole models take, by plan and round; answers with the sizes of the plans that were timed."""
    timed: list[int] = []

    def whole(self: MeasuredHere, plans: Sequence[Mapping[str, Choice]]) -> WholeLatencies:
        timed.extend(len(plan) for plan in plans)
        return WholeLatencies(tuple(tuple(samples(plan, turn) for turn in range(9)) for plan in ({}, *plans)))

    monkeypatch.setattr(MeasuredHere, "whole", whole)
    return timed


def test_whole_models_have_the_last_word(monkeypatch: pytest.MonkeyPatch):
    """By single attentions both blocks in windows of 2x2 are fastest; as whole models those with a 2x3 are."""
    model, batches = images("timm_vit_fused")
    timed = whole_ms(monkeypatch, lambda plan, _: 100.0 - 20.0 * (WINDOWS[1] in plan.values()))
    plan = jetvit.calibrate(model, batches, max_drift=100.0, choices=WINDOWS)
    assert len(timed) == 3
    assert WINDOWS[1] in [site.choice for site in plan.sites]
    assert (plan.provenance["eager_full_ms"], plan.provenance["eager_plan_ms"]) == (100.0, 80.0)
    assert plan.provenance["speedup"] == [1.25, 1.25, 1.25]


def test_a_gain_within_the_noise_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    model, batches = images("timm_vit_fused")
    whole_ms(monkeypatch, lambda plan, turn: 100.0 - bool(plan) + (turn % 3) * (5.0 if plan else 1.0))
    plan = jetvit.calibrate(model, batches, max_drift=100.0, choices=WINDOWS)
    assert "not faster than the original beyond noise" in caplog.text
    assert all(site.choice.kind == "window" for site in plan.sites)
    _, low, high = plan.provenance["speedup"]
    assert low <= 1 <= high


def test_a_plan_that_is_slower_as_a_whole_is_not_returned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    model, batches = images("timm_vit_fused")
    whole_ms(monkeypatch, lambda plan, _: 100.0 + 10.0 * bool(plan))
    plan = jetvit.calibrate(model, batches, max_drift=100.0, choices=WINDOWS)
    assert "slower than the original" in caplog.text
    assert all(site.choice.kind == "full" for site in plan.sites)
    assert plan.provenance["eager_plan_ms"] == plan.provenance["eager_full_ms"] == 100.0
    assert plan.provenance["joint_drift_selection"] == plan.provenance["joint_drift_held_out"] == 0.0


def test_no_warning_where_the_gain_is_sure(caplog: pytest.LogCaptureFixture):
    model, batches = images("timm_vit_fused")
    caplog.set_level(logging.WARNING, "jetvit.search")
    assert jetvit.calibrate(model, batches, max_drift=100.0, choices=WINDOWS).provenance["speedup"][1] > 1
    assert "original" not in caplog.text


def test_a_busy_machine_confirms_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """One attention takes 88 ms, and then 1.7 ms."""
    model, batches = images("timm_vit_fused")
    calls: list[int] = []

    def busy(choices: list[Choice], shape: AttentionShape, **_: object) -> dict[Choice, Latency]:
        calls.append(len(choices))
        return {choice: Latency(*[1.7 if len(choices) == 1 else 88.0 - fixed_ms(choice)] * 3, 9) for choice in choices}

    monkeypatch.setattr(model_latency, "measure_choices", busy)
    plan = jetvit.calibrate(model, batches, max_drift=100.0, choices=WINDOWS)
    made = plan.provenance
    assert calls == [3, 1] * 3  # measured again, and again
    assert made["confirmed"] is False
    assert "speedup" not in made
    assert made["too_busy"] == ["full attention over 25 tokens took 78 ms, and 1.7 ms when it was timed again"]
    assert f"this machine is too busy to time on: {made['too_busy'][0]}" in caplog.text
    report = jetvit.explain(model, *batches[0][0], kwargs=batches[0][1], plan=plan)
    assert any("too busy to time on" in warning for warning in report.warnings)


def test_a_busy_moment_is_measured_again(monkeypatch: pytest.MonkeyPatch):
    model, batches = images("timm_vit_fused")
    calls: list[int] = []

    def busy_first(choices: list[Choice], shape: AttentionShape, **_: object) -> dict[Choice, Latency]:
        calls.append(len(choices))
        return {choice: Latency(*[fixed_ms(choice) * (9 if len(calls) == 1 else 1)] * 3, 9) for choice in choices}

    monkeypatch.setattr(model_latency, "measure_choices", busy_first)
    plan = jetvit.calibrate(model, batches, max_drift=100.0, choices=WINDOWS)
    assert calls == [3, 1] * 2
    assert plan.provenance["confirmed"] is True
    assert [measured.latency_ms for measured in plan.sites[0].measured] == [10.0, 4.0, 6.0]


def test_a_gain_within_the_spread_of_a_measurement_is_none(monkeypatch: pytest.MonkeyPatch):
    model, batches = images("timm_vit_fused")

    def noisy(choices: list[Choice], shape: AttentionShape, **_: object) -> dict[Choice, Latency]:
        return {choice: Latency(fixed_ms(choice), 3.0, 12.0, 9) for choice in choices}

    monkeypatch.setattr(model_latency, "measure_choices", noisy)
    plan = jetvit.calibrate(model, batches, max_drift=100.0, choices=WINDOWS)
    assert all(site.choice.kind == "full" for site in plan.sites)
    assert [measured.latency_ms for measured in plan.sites[0].measured] == [10.0, 4.0, 6.0]


def test_the_measured_latency_has_to_keep_the_budget(monkeypatch: pytest.MonkeyPatch):
    """A window saves half of what its attention alone promises: one is not enough, though the sum says that it is."""
    model, batches = images("timm_vit_fused")

    def half(plan: Mapping[str, Choice], _: int) -> float:
        return 100.0 - sum(10.0 - fixed_ms(choice) for choice in plan.values()) / 2

    whole_ms(monkeypatch, half)
    plan = jetvit.calibrate(model, batches, max_drift=100.0, budget="95ms", choices=WINDOWS)
    assert plan.provenance["eager_plan_ms"] <= 95.0
    assert all(site.choice.kind == "window" for site in plan.sites)
    with pytest.raises(PlanError, match="no plan meets the budget") as caught:
        jetvit.calibrate(model, batches, max_drift=100.0, budget="92ms", choices=WINDOWS)
    assert "takes about 94.0 ms" in str(caught.value)


# Another device


def device_costs(
    model: torch.nn.Module,
    batch: Any,
    ms_of: Callable[[Operation], float],
    overheads: Mapping[Mode, Overheads] | None = None,
    ops: Sequence[str] = OPS,
) -> DeviceCosts:
    """A table of an H100 with every operation of the model in bf16, before and after `WINDOWS`, and nothing else."""
    program = export_model(model, *batch)
    graph = ExportedGraph(program)
    rewrite(graph, options=RewriteOptions(operator=True))
    found = {replace(each, dtype="bfloat16").key for each in graph_operations(graph.module).counted}
    for site, choice in product(jetvit.find_attention(program), (FULL, *WINDOWS)):
        found.add(site_operation(site, choice, gpu=True, dtype="bfloat16").key)
    rows = [Measurement(GPU, each, Latency(*[ms_of(each)] * 3, 9), "", NOW) for each in found if each.op in ops]
    return DeviceCosts(GPU, Latencies(rows), overheads or {})


def on_gpu(operation: Operation) -> float:
    return {"full": 10.0, "window": float(operation.window_h * operation.window_w)}.get(operation.op, 0.5)


@pytest.fixture
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is timed where a table is given")

    monkeypatch.setattr(model_latency, "measure_choices", refuse)
    monkeypatch.setattr(MeasuredHere, "whole", refuse)


@pytest.mark.usefixtures("_no_clock")
@pytest.mark.parametrize("name", sweep(["timm_vit_fused", "rope_half", "extra_both"], quick=["rope_half"]))
def test_a_plan_for_a_device_that_is_not_here(name: str):
    model, batches = images(name)
    costs = device_costs(model, batches[0], on_gpu)
    plan = jetvit.calibrate(model, batches, max_drift=100.0, choices=WINDOWS, costs=costs, dtype="bfloat16")
    assert [site.choice for site in plan.sites] == [WINDOWS[0]] * len(plan.sites)
    assert [[each.latency_ms for each in site.measured] for site in plan.sites] == [[10.0, 4.0, 6.0]] * len(plan.sites)
    made = plan.provenance
    assert made["confirmed"] is False
    assert made["latencies_of"] == "NVIDIA H100 80GB HBM3 with 132 multiprocessors"
    assert made["latencies_measured"] == 3 * len(plan.sites)
    assert "eager_full_ms" not in made
    assert made["estimated_full_ms"] - made["estimated_plan_ms"] == pytest.approx(6.0 * len(plan.sites))
    assert plan.front[0].latency_ms == 10.0 * len(plan.sites)


@pytest.mark.usefixtures("_no_clock")
@pytest.mark.parametrize("overlap", sweep([1.0, 0.5], quick=[0.5]))
def test_a_budget_on_a_device_that_is_not_here(overlap: float):
    """What a window saves alone counts for `overlap` of it in the whole model."""
    model, batches = images("timm_vit_fused")
    costs = device_costs(model, batches[0], on_gpu, {"compiled": Overheads(fixed_ms=1.0, overlap=overlap)})
    made = jetvit.calibrate(model, batches, 100.0, choices=WINDOWS, costs=costs, dtype="bfloat16").provenance
    full_ms, least_ms = made["estimated_full_ms"], made["estimated_plan_ms"]
    assert full_ms - least_ms == pytest.approx(12.0 * overlap)
    budget = f"{full_ms - 4.0 * overlap:.3f}ms"
    plan = jetvit.calibrate(model, batches, 100.0, budget, choices=WINDOWS, costs=costs, dtype="bfloat16")
    assert least_ms < plan.provenance["estimated_plan_ms"] <= full_ms - 4.0 * overlap + 1e-3
    with pytest.raises(PlanError, match="no plan meets the budget") as caught:
        jetvit.calibrate(model, batches, 100.0, f"{least_ms - 0.1}ms", choices=WINDOWS, costs=costs, dtype="bfloat16")
    assert f"takes about {least_ms:.1f} ms" in str(caught.value)


def test_what_the_table_does_not_know_is_named():
    model, batches = images("timm_vit_fused")
    costs = device_costs(model, batches[0], on_gpu)
    with pytest.raises(InputError, match=r"does not know full attention at blocks\.0\.attn") as caught:
        jetvit.calibrate(model, batches, choices=WINDOWS, costs=costs)
    assert "no full float32 was measured" in str(caught.value)
    assert "jetvit measure" in str(caught.value)
    others = [Choice("window", window=(3, 3))]
    with pytest.raises(InputError, match="does not know window 3x3 attention") as caught:
        jetvit.calibrate(model, batches, choices=others, costs=costs, dtype="bfloat16")
    assert "too few measurements of window bfloat16" in str(caught.value)
    bare = device_costs(model, batches[0], on_gpu, ops=ATTENTIONS)
    with pytest.raises(InputError, match="does not know the model"):
        jetvit.calibrate(model, batches, choices=WINDOWS, costs=bare, dtype="bfloat16")


def test_a_dtype_needs_a_table():
    model, batches = images("sdpa")
    with pytest.raises(InputError, match="a dtype without costs"):
        jetvit.calibrate(model, batches, choices=WINDOWS, dtype="bfloat16")


def test_it_is_the_public_function():
    assert jetvit.calibrate is calibrate_module_function
