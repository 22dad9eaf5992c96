"""Every full attention becomes one plain SDPA, and what is none stays as it is."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import jetvit
from jetvit.passes.fuse_attention import FuseAttention
from jetvit.passes.graph import ExportedGraph
from jetvit.patterns.cores import SDPA
from jetvit.patterns.walk import argument
from tests.passes.models import assert_close, aten, by_road, count, exported, nodes_of
from tests.zoo import CASES
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
        assert FuseAttention()(ExportedGraph(exported(name)[2])).fired == 0


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
