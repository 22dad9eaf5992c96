"""Every full attention becomes one plain SDPA or one operator, and what is none stays as it is."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import jetvit
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.pipeline import RewriteOptions, passes, run_pipeline
from jetvit.passes.rewrites.apply_plan import ApplyPlan
from jetvit.passes.rewrites.fuse_attention import FuseAttention
from jetvit.patterns import AttentionSite, PlanError, find_sites
from jetvit.patterns.aten_sets import SDPA
from jetvit.patterns.calls import argument
from jetvit.patterns.storage import relies_on_strides
from tests.passes.models import (
    ALTERNATING,
    FULL,
    WINDOW,
    assert_close,
    aten,
    by_road,
    count,
    exported,
    nodes_of,
    plan_of,
    planned,
)
from tests.zoo import CASES, found
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import PRODUCTS, SIZE, Attention, TinyViT, scale_on_product

UNFUSED = [product.__name__ for product in PRODUCTS if "sdpa" not in product.__name__]
QUICK = ("scale_on_q", "scale_by_division", "einsum_bqhd", "bmm", "softmax_in_fp32", "autocast_attention", "headless")
FORMS = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in (*UNFUSED, "headless", "seq_first_bmm", "hf_dinov3_eager")
]
SOFTMAX = (aten.softmax.int, aten._softmax.default)


@pytest.mark.parametrize("name", FORMS)
def test_softmax_becomes_one_sdpa(name: str) -> None:
    """As many as there are sites, without a mask, with the site's scale; no softmax is left."""
    model, (args, kwargs), program = exported(name)
    graph = ExportedGraph(program)
    scales = [site.scale for site in jetvit.find_attention(program)]
    assert FuseAttention()(graph).fired == len(scales) == CASES[name].sites
    assert FuseAttention()(graph).fired == 0
    graph.module.graph.eliminate_dead_code()
    optimized = jetvit.optimize(program).graph_module
    assert count(optimized, *SOFTMAX) == 0
    fused = [node for node in nodes_of(optimized) if node.target is SDPA]
    assert [node.args[3:] for node in fused] == [(None, 0.0, False)] * len(scales)
    assert [node.kwargs["scale"] for node in fused] == scales
    narrow = "autocast" in name
    assert_close(graph.program().module()(*args, **kwargs), model(*args, **kwargs), 1e-2 if narrow else 1e-5)


def test_plain_sdpa_is_left_alone() -> None:
    for name in ("sdpa", "sdpa_scaled", "functional_mha"):
        graph = ExportedGraph(exported(name)[2])
        # torch 2.11 captures the `view` of a MultiheadAttention, which has to become a `reshape`.
        views = sum(relies_on_strides(site.out.node) for site in find_sites(graph))
        assert views == 0 or (name == "functional_mha" and torch.__version__.startswith("2.11."))
        assert FuseAttention()(graph).fired == views


@pytest.mark.parametrize("road", ["export", "dynamo"])
def test_another_backend_may_leave_other_strides(road: str) -> None:
    """`contiguous().view()` is captured as a `view` alone where the backend of the day gives the strides for it."""
    model, inputs, _ = exported("separate")
    expected = model(*inputs[0])
    with sdpa_kernel(SDPBackend.MATH):
        assert_close(by_road(road, model, inputs)(*inputs[0]), expected)
    optimized = by_road("export", model, inputs)
    with sdpa_kernel(SDPBackend.MATH):
        assert_close(optimized(*inputs[0]), expected)


def masks(module: nn.Module) -> list[object]:
    return [argument(node, 3, "attn_mask") for node in nodes_of(module) if node.target is SDPA]


def test_the_neutral_mask_of_transformers_is_dropped() -> None:
    _, _, program = exported("hf_vit_sdpa")
    if masks(program.graph_module) == [None, None]:
        pytest.skip("this transformers makes no mask for images")
    assert masks(jetvit.optimize(program).graph_module) == [None, None]


def zero_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.zeros(q.shape[-2], q.shape[-2]))


def true_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(q.shape[0], 1, q.shape[-2], q.shape[-2], dtype=torch.bool)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("road", ["export", "dynamo"])
@pytest.mark.parametrize("product", [zero_mask, true_mask])
def test_a_mask_that_hides_nothing_is_dropped(product: object, road: str) -> None:
    model, image = randomize(TinyViT(partial(Attention, product))), images(2, 3, *SIZE)
    assert_close(by_road(road, model, ((image,), {}))(image), model(image))
    if road == "export":
        assert masks(jetvit.optimize(model, image).program.graph_module) == [None, None]


@pytest.mark.parametrize("name", ["sdpa_mask", "float_mask", "causal", "triu_mask", "softmax_over_queries"])
def test_what_is_no_full_attention_stays(name: str) -> None:
    _, _, program = exported(name)
    graph = ExportedGraph(program)
    before = str(graph.module.graph)
    assert FuseAttention()(graph).fired == 0
    assert str(graph.module.graph) == before


class ViewedAttention(Attention):
    """Looks at the result with `view`, which takes the memory of a product and not that of another operator."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        out = scale_on_product(q, k, v)
        b, h, n, d = out.shape
        out = out.view(b * h, n, d).view(b, h, n, d)
        return self.proj(out.transpose(1, 2).reshape(b, n, h * d))


@pytest.mark.parametrize("road", ["export", "dynamo"])
def test_a_view_of_the_result(road: str) -> None:
    model, image = randomize(TinyViT(partial(ViewedAttention, scale_on_product))), images(2, 3, *SIZE)
    assert_close(by_road(road, model, ((image,), {}))(image), model(image))


# --- the operator -----------------------------------------------------------------------------------------------------

OPERATOR = torch.ops.jetvit.full_attention.default
_QUICK_AS_OPERATOR = re.compile(
    r"hf_dinov3_eager|timm_eva02_unfused|separate|bmm|extra_both|seq_first_bmm|softmax_outside_autocast|shared_block"
)
EVERY = [
    pytest.param(case.name, id=case.name, marks=[] if _QUICK_AS_OPERATOR.fullmatch(case.name) else [pytest.mark.slow])
    for case in found()
]


def facts(site: AttentionSite) -> dict[str, Any]:
    """What a rewrite does not change."""
    return {
        "name": site.name,
        "heads": (site.num_heads, site.head_dim),
        "scale": pytest.approx(site.scale),
        "tokens": (site.extra_before, site.grid, site.extra_after),
        "rope": site.rope and site.rope.style,
        "autocast": site.autocast,
    }


def as_operators(program: torch.export.ExportedProgram) -> ExportedGraph:
    """The graph after a pipeline that makes operators."""
    graph = ExportedGraph(program)
    sequence = passes(options=RewriteOptions(operator=True))
    run_pipeline(graph, sequence)
    assert not sum(record.fired for record in run_pipeline(graph, sequence))
    return graph


@pytest.mark.parametrize("name", EVERY)
def test_every_site_becomes_an_operator_and_stays_a_site(name: str) -> None:
    model, (args, kwargs), program = exported(name)
    before = find_sites(ExportedGraph(program))
    graph = as_operators(program)
    after = find_sites(graph)
    assert count(graph.module, OPERATOR) == len(before)
    assert {site.form for site in after} == {"operator"}
    assert not after.rewritten
    assert [facts(site) for site in after] == [facts(site) for site in before]
    assert len(after.rejected) == len(before.rejected)
    narrow = "autocast" in name
    result = graph.program()
    assert_close(result.module()(*args, **kwargs), model(*args, **kwargs), 1e-2 if narrow else 1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_plan_fits_a_graph_of_operators(name: str) -> None:
    """The rotation that went into the operator goes into the next one."""
    model, inputs, program = exported(name)
    graph = as_operators(program)
    plan = plan_of(find_sites(graph), ALTERNATING)
    result = jetvit.optimize(graph.program(), plan=plan)
    assert count(result.graph_module, OPERATOR) == 0
    assert_close(result.module()(*inputs[0], **inputs[1]), planned(model, inputs, plan))


def test_a_plan_beside_operators_is_the_same_plan_again() -> None:
    _, _, program = exported("rope_half")
    graph = ExportedGraph(program)
    plan = plan_of(find_sites(graph), [WINDOW, FULL])
    assert ApplyPlan(plan)(graph).fired == 1
    assert FuseAttention(operator=True)(graph).fired == 1
    assert ApplyPlan(plan)(graph).fired == 0
    with pytest.raises(PlanError, match=r"by another plan(.|\n)*full in the graph and window 2x3 in the plan"):
        ApplyPlan(plan_of(find_sites(ExportedGraph(program)), [WINDOW]))(graph)


def test_an_operator_is_reported_as_the_full_attention_that_it_is() -> None:
    _, _, program = exported("hf_dinov3_sdpa")
    report = jetvit.explain(as_operators(program).program())
    assert [(row.status, row.form, row.rope, row.decision) for row in report.rows] == [
        ("found", "operator", "half", "full")
    ] * 2


def test_on_a_cpu_it_is_plain_sdpa_unless_asked_for() -> None:
    _, _, program = exported("scale_on_q")
    for operator, expected in ((None, 0), (False, 0), (True, 2)):
        graph = ExportedGraph(program)
        assert FuseAttention(operator)(graph).fired == 2
        assert count(graph.module, OPERATOR) == expected
        assert count(graph.module, SDPA) == 2 - expected


def test_an_operator_takes_the_place_of_plain_sdpa() -> None:
    model, inputs, program = exported("rope_half")
    graph = ExportedGraph(program)
    assert FuseAttention()(graph).fired == 0
    assert FuseAttention(operator=True)(graph).fired == 2
    assert FuseAttention(operator=True)(graph).fired == FuseAttention()(graph).fired == 0
    assert_close(graph.program().module()(*inputs[0]), model(*inputs[0]))


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_operator() -> None:
    model, (args, kwargs) = CASES["hf_dinov3_sdpa"].build().cuda(), CASES["hf_dinov3_sdpa"].inputs()
    args = tuple(arg.cuda() for arg in args)
    optimized = jetvit.optimize(model, *args, kwargs=kwargs)
    assert count(optimized.graph_module, OPERATOR) == 2
    assert count(optimized.graph_module, SDPA) == 0
    assert_close(optimized(*args, **kwargs), model(*args, **kwargs), 1e-3)
