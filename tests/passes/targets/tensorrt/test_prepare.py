"""The prepared program has no operator of jetvit left, and computes the same; with plugins, those that can be are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import jetvit
from jetvit.cost_model import Choice
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.pipeline import run_pipeline
from jetvit.passes.rewrites.fuse_attention import FuseAttention
from jetvit.passes.targets.tensorrt import prepare
from jetvit.patterns.errors import RewriteError
from tests.passes.models import assert_close, by_road, count, nodes_of
from tests.passes.plans import MIXED, rewritten, with_kernels
from tests.zoo import CASES
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import PATCH, SIZE, Attention, TinyViT, sdpa
from tests.zoo.quick import sweep

KINDS = ("hf_dinov3_sdpa", "hf_depth_anything_sdpa", "hf_yolos_sdpa", "timm_vit_fused")
SDPA = torch.ops.aten.scaled_dot_product_attention.default


def libraries(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target).partition(".")[0] for node in nodes_of(program.graph_module)}


@pytest.mark.parametrize(
    ("name", "static"),
    sweep(
        [*((name, False) for name in KINDS), ("timm_vit_fused", True)],
        quick=[("hf_dinov3_sdpa", False), ("timm_vit_fused", True)],
    ),
)
def test_it_computes_the_same_without_our_operators(name: str, static: bool) -> None:
    program, (args, kwargs) = rewritten(name, static=static)
    assert "jetvit" in libraries(program)
    before = program.graph_module.code
    prepared = prepare(program)
    assert "jetvit" not in libraries(prepared)
    assert_close(prepared.module()(*args, **kwargs), program.module()(*args, **kwargs))
    assert program.graph_module.code == before
    assert prepared.call_spec == program.call_spec
    assert prepare(prepared) is prepared


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param("hf_dinov3_sdpa", [(2, (32, 48)), (3, (72, 40)), (2, (56, 56))], marks=pytest.mark.slow),
        ("timm_vit_fused", [(2, (48, 24)), (4, (72, 64))]),
    ],
)
def test_open_sizes_stay_open(name: str, sizes: list[tuple[int, tuple[int, int]]]) -> None:
    program, _ = rewritten(name, (Choice("window", window=(3, 4)), Choice("linear", conv_size=3)), dynamic=True)
    prepared = prepare(program)
    assert prepared.range_constraints == program.range_constraints
    ours, theirs = prepared.module(), program.module()
    for batch, size in sizes:
        args, kwargs = CASES[name].inputs(batch=batch, size=size)
        assert_close(ours(*args, **kwargs), theirs(*args, **kwargs))


def test_full_attention_of_a_gpu() -> None:
    """`jetvit::full_attention`, which takes the rotary embedding, is one attention again."""
    inputs = CASES["hf_dinov3_sdpa"].inputs()
    graph = ExportedGraph(export_model(CASES["hf_dinov3_sdpa"].build(), *inputs))
    run_pipeline(graph, [FuseAttention(operator=True)])
    program = graph.program()
    assert count(program.graph_module, torch.ops.jetvit.full_attention.default) == 2
    prepared = prepare(program)
    assert count(prepared.graph_module, SDPA) == 2
    assert_close(prepared.module()(*inputs[0], **inputs[1]), program.module()(*inputs[0], **inputs[1]))


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = randomize(TinyViT(lambda: Attention(sdpa)))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            return self.inner(image)


def test_autocast_does_not_reach_the_sums() -> None:
    image = images(2, 3, *SIZE)
    program = export_model(Autocast(), (image,))
    plan = with_kernels(
        jetvit.find_attention(program), (Choice("linear", conv_size=3), Choice("window", window=(2, 3)))
    )
    program = jetvit.optimize(program, plan=plan)
    prepared = prepare(program)
    assert "jetvit" not in libraries(prepared)
    assert_close(prepared.module()(image), program.module()(image), 1e-2)
    scores = [node for node in nodes_of(prepared.graph_module) if node.target is torch.ops.aten.matmul.default]
    assert scores
    assert {node.meta["val"].dtype for node in scores} == {torch.float32}


def test_a_model_without_our_operators_is_left_alone() -> None:
    program = export_model(CASES["timm_vit_fused"].build(), *CASES["timm_vit_fused"].inputs())
    assert prepare(program) is program


def test_a_wrong_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from jetvit.passes.targets.tensorrt import prepare as module

    program, _ = rewritten("timm_vit_fused", (Choice("linear"),))
    op = torch.ops.jetvit.linear_attention.default
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules[module.__module__].DECOMPOSITIONS, op, lambda q, *_: q[:, 1:])
        with pytest.raises(RewriteError, match="lower-operators"):
            prepare(program)


# --- plugins ----------------------------------------------------------------------------------------------------------


def plugins_of(program: torch.export.ExportedProgram) -> list[str]:
    return [node.target._opname for node in nodes_of(program.graph_module) if "jetvit" in str(node.target)]


@pytest.mark.parametrize(
    ("name", "static", "expected"),
    [
        ("hf_dinov3_sdpa", False, ["window_attention_rope", "linear_attention_rope_dynamic"]),
        ("timm_vit_fused", True, ["window_attention", "linear_attention_static"]),
        pytest.param(
            "hf_depth_anything_sdpa",
            False,
            ["window_attention", "linear_attention_dynamic", "linear_attention"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_plugins(name: str, static: bool, expected: list[str]) -> None:
    program, (args, kwargs) = rewritten(name, static=static)
    prepared = prepare(program, plugins=True)
    assert plugins_of(prepared) == expected
    assert all(not node.kwargs for node in nodes_of(prepared.graph_module) if "jetvit" in str(node.target))
    assert_close(prepared.module()(*args, **kwargs), program.module()(*args, **kwargs))


@pytest.mark.parametrize(
    ("choice", "dtype", "dynamic", "why"),
    [
        (Choice("linear", feature_map="hedgehog"), torch.float32, False, "the feature map 'hedgehog' has no kernel"),
        (Choice("linear"), torch.bfloat16, False, "no bf16 tensors"),
        (Choice("linear"), torch.float64, False, "no fp64"),
        pytest.param(
            Choice("window", window=(2, 2)), torch.float32, True, "grid_h, grid_w are open", marks=pytest.mark.slow
        ),
    ],
)
def test_what_is_no_plugin_is_decomposed(
    choice: Choice, dtype: torch.dtype, dynamic: bool, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES["timm_vit_fused"]
    args, kwargs = case.inputs(dtype=dtype)
    program = export_model(case.build().to(dtype), args, kwargs, case.dynamic_shapes(args, kwargs) if dynamic else None)
    program = jetvit.optimize(program, plan=with_kernels(jetvit.find_attention(program), (choice,)))
    prepared = prepare(program, plugins=True)
    assert plugins_of(prepared) == []
    assert why in caplog.text


def test_an_open_batch_is_no_hindrance_to_a_plugin() -> None:
    program, _ = rewritten("hf_depth_anything_sdpa", (Choice("window", window=(2, 2)),), dynamic=True)
    prepared = prepare(program, plugins=True)
    assert plugins_of(prepared) == ["window_attention"] * 4
    args, kwargs = CASES["hf_depth_anything_sdpa"].inputs(batch=3)
    assert_close(prepared.module()(*args, **kwargs), program.module()(*args, **kwargs))


# --- the law ----------------------------------------------------------------------------------------------------------


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    linear = st.builds(
        Choice,
        st.just("linear"),
        conv_size=st.sampled_from([0, 3, 5]),
        feature_map=st.sampled_from(sorted(FEATURE_MAPS)),
    )
    window = st.builds(lambda h, w: Choice("window", window=(h, w)), st.integers(1, 4), st.integers(1, 8))
    return {
        "before": draw(st.integers(0, 3)),
        "after": draw(st.integers(0, 2)),
        "batch": draw(st.integers(1, 3)),
        "grid": (draw(st.integers(2, 7)), draw(st.integers(2, 7))),
        "choices": draw(st.lists(st.one_of(linear, window), min_size=2, max_size=2)),
        "static": draw(st.booleans()),
        "plugins": draw(st.booleans()),
    }


def check_law(of: dict[str, Any]) -> None:
    model = randomize(TinyViT(lambda: Attention(sdpa), before=of["before"], after=of["after"]))
    image = images(of["batch"], 3, *(PATCH * side for side in of["grid"]))
    plan = with_kernels(jetvit.find_attention(model, image), of["choices"], of["static"])
    program = jetvit.optimize(export_model(model, (image,)), plan=plan)
    prepared = prepare(program, plugins=of["plugins"])
    assert_close(prepared.module()(image), by_road("export", model, ((image,), {}), plan)(image))


@settings(max_examples=2)
@given(configurations())
def test_any_plan_keeps_its_meaning(of: dict[str, Any]) -> None:
    with torch.no_grad():
        check_law(of)


@pytest.mark.slow
@settings(max_examples=100)
@given(configurations())
def test_any_plan_keeps_its_meaning_at_length(of: dict[str, Any]) -> None:
    with torch.no_grad():
        check_law(of)


def test_mixed_plans_hold_every_kind() -> None:
    assert {choice.kind for choice in MIXED} == {"window", "linear", "full"}
