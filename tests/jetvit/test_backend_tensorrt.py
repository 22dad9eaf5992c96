"""`torch.compile(model, backend="jetvit", options={"inner": "tensorrt"})`: what Torch-TensorRT's backend is given."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

import jetvit
from jetvit.backend import jetvit as backend
from jetvit.cost_model import Choice, Plan
from jetvit.patterns import InputError
from tests.passes.models import WINDOW, assert_close, compiled, nodes_of, plan_of, planned
from tests.passes.tensorrt_release import Release
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import SIZE, Attention, TinyViT, sdpa

IMAGE = images(2, 3, *SIZE)
LINEAR = Choice("linear", feature_map="hedgehog")


@pytest.fixture(autouse=True)
def _inference(frozen_imports: None) -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Release:
    release = Release()
    release.install(monkeypatch)
    return release


def vit() -> TinyViT:
    return randomize(TinyViT(partial(Attention, sdpa)))


def plan(model: TinyViT) -> Plan:
    return plan_of(jetvit.find_attention(model, IMAGE), [WINDOW, LINEAR])


def ours(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in nodes_of(graph) if str(node.target).startswith("jetvit")]


@pytest.mark.parametrize("inner", ["tensorrt", "torch_tensorrt"])
def test_its_backend_gets_standard_operators(library: Release, inner: str) -> None:
    model = vit()
    options = {"optimization_level": 5}
    result = compiled(model, inner, plan=plan(model), inner_options=options)(IMAGE)
    assert_close(result, planned(model, ((IMAGE,), {}), plan(model)))
    (call,) = library.named("backend")
    assert call["options"] == options
    assert ours(call["graph"]) == []
    assert not library.named("dynamo.conversion.plugins.custom_op")


def test_plugins(library: Release) -> None:
    model = vit()
    result = compiled(model, "tensorrt", plan=plan(model), inner_options={"plugins": True})(IMAGE)
    assert_close(result, planned(model, ((IMAGE,), {}), plan(model)))
    (call,) = library.named("backend")
    assert "options" not in call
    assert ours(call["graph"]) == ["jetvit_tensorrt.window_attention.default"]  # hedgehog has no kernel
    (plugin,) = library.named("dynamo.conversion.plugins.custom_op")
    assert plugin["op_name"] == "jetvit_tensorrt::window_attention"


def test_autocast_does_not_reach_the_sums(library: Release) -> None:
    model = vit()
    choices = [Choice("linear"), WINDOW]
    mixed = plan_of(jetvit.find_attention(model, IMAGE), choices)
    with torch.autocast("cpu", torch.bfloat16):
        expected = compiled(model, "eager", plan=mixed)(IMAGE)
        torch._dynamo.reset()
        result = compiled(model, "tensorrt", plan=mixed)(IMAGE)
    assert_close(result, expected, 1e-2)
    (call,) = library.named("backend")
    assert ours(call["graph"]) == []


def test_a_missing_library_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(BackendCompilerFailed, match=r"InputError: .*(.|\n)*pip install 'jetvit\[tensorrt\]'"):
        compiled(vit(), "tensorrt")(IMAGE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimisation_level": 5}, "no setting 'optimisation_level'\n.*'optimization_level'"),
        ({"plugin": True}, "no setting 'plugin'"),
    ],
)
def test_settings_that_it_would_pass_over(library: Release, options: dict[str, Any], message: str) -> None:
    gm = torch.fx.symbolic_trace(torch.nn.Identity())
    with pytest.raises(InputError, match=message):
        backend(gm, [IMAGE], options={"inner": "tensorrt", "inner_options": options})


def test_a_mode_is_for_inductor(library: Release) -> None:
    gm = torch.fx.symbolic_trace(torch.nn.Identity())
    with pytest.raises(InputError, match="the inner backend is 'tensorrt'"):
        backend(gm, [IMAGE], options={"inner": "tensorrt"}, mode="max-autotune")
