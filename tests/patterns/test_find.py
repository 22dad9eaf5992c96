"""Every model of the zoo, by both roads: what is found, what is refused and why, and that each claim holds when run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from jetvit.patterns import AttentionSite, Linear
from jetvit.patterns.sizes import is_static
from tests.patterns.roads import (
    ROADS,
    Captured,
    assert_row_major,
    by_dynamo,
    by_export,
    no_fast_path,
    of_case,
    open_dims,
)
from tests.zoo import CASES, Case, found, refused
from tests.zoo.case import REPRS, randomize
from tests.zoo.handwritten import Attention, Dinov2Attention, SeparateAttention, TinyViT, scale_on_product
from tests.zoo.quick import sweep

# On the Dynamo road a quick run leaves out what differs only inside the attention: both roads give one dialect.
_SAME_BY_DYNAMO = re.compile(
    r"hf_(vit|yolos|deit|dinov2|beit|sam|swin|siglip)_?.*|hf_depth_anything_.*|hf_dinov3_sdpa"
    r"|timm_.*_unfused|timm_(dinov3_.*|vit_qk_norm.*|dinov2.*|swin)"
    r"|scale_.*|sdpa_.*|no_scale|bmm|einsum_.*|softmax_in_fp32|softmax_dtype_argument|autocast_sdpa|no_grad_sdpa"
    r"|chunk|split|head_major|separate.*|dinov2_repo|single_head|headless|functional_mha|seq_first_mha"
    r"|no_extra_tokens|extra_after|autocast_model_sdpa|no_grad_model_unfused|dropout_.*"
    r"|(float|baddbmm|bool|triu)_mask|learned_bias|softmax_over_queries|cross_attention|reduced_keys|windows"
    r"|(video|pooled|text|pruned)_tokens|rope_half|reshape_patches|channel_attention|mha_dropped_weights"
)
_QUICK_OPEN = {
    "export": r"hf_dinov3_sdpa|timm_vit_fused|reshape_patches|seq_first_bmm|extra_both",
    "dynamo": r"unfold_patches|seq_first_bmm",
}


def parameters(cases: list[Case], open_sizes: bool = False) -> list[Any]:
    """Each case on each road; those that a quick run leaves out are marked slow."""

    def slow(case: Case, road: str) -> bool:
        if open_sizes:
            return not re.fullmatch(_QUICK_OPEN[road], case.name)
        return road == "dynamo" and bool(_SAME_BY_DYNAMO.fullmatch(case.name))

    return [
        pytest.param(case, road, id=f"{case.name}-{road}", marks=[pytest.mark.slow] if slow(case, road) else [])
        for case in cases
        for road in ROADS
    ]


EVERY = parameters(list(CASES.values()))
FOUND = parameters(found())
REFUSED = parameters(refused())
OPEN = parameters(found(), open_sizes=True)


def facts(site: AttentionSite) -> dict[str, Any]:
    """What a site says in terms that do not depend on the graph."""
    return {
        "name": site.name,
        "num_heads": site.num_heads,
        "head_dim": site.head_dim,
        "scale": site.scale,
        "grid": site.grid,
        "extra": (site.extra_before, site.extra_after),
        "rope": site.rope and site.rope.style,
        "form": site.form,
        "autocast": site.autocast,
        "projections": {role: (each.weight, each.bias) for role, each in site.projections.named().items()},
        "layouts": [str(each.layout) for each in (site.q, site.k, site.v, site.out)],
    }


def assert_found(captured: Captured, case: Case, size: tuple[int, int]) -> None:
    """The sites are those of the case, at an image size."""
    assert tuple(site.name for site in captured.sites) == case.names
    for site in captured.sites:
        assert (site.num_heads, site.head_dim) == (case.num_heads, case.head_dim)
        assert site.scale == pytest.approx(case.softmax_scale, rel=1e-6)
        assert (site.extra_before, site.extra_after) == (case.extra_before, case.extra_after)
        assert (site.rope and site.rope.style) == case.rope
        assert tuple(map(int, site.grid)) == case.grid(size)
    assert len(captured.attentions) == case.sites
    for attention in captured.attentions:
        attention.assert_true()


@pytest.mark.parametrize(("case", "road"), FOUND)
def test_sites(case: Case, road: str) -> None:
    assert_found(of_case(case.name, road), case, case.size)


@pytest.mark.parametrize(("case", "road"), REFUSED)
def test_near_misses(case: Case, road: str) -> None:
    """Each kind is refused with its reason, the node at which it shows and the line of the model's code."""
    captured = of_case(case.name, road)
    assert len(captured.sites) == case.sites
    rejected = captured.sites.rejected
    for words in case.rejections:
        assert any(re.search(words, rejection.reason) for rejection in rejected), [str(each) for each in rejected]
    nodes = {node for graph in captured.graphs for module in graph.module.modules() for node in module.graph.nodes}
    for rejection in rejected:
        assert rejection.node in nodes
        assert re.match(r".+\.py:\d+ in \w+: \S", rejection.source)
        assert not REPRS.search(str(rejection))
        assert str(rejection).startswith(f"{rejection.name}: {rejection.reason} (node {rejection.node.name}, ")


@pytest.mark.parametrize(("case", "road"), EVERY)
def test_every_attention_is_answered_for(case: Case, road: str) -> None:
    """As many answers as the graphs have softmaxes and SDPA calls; and nothing was rewritten before."""
    captured = of_case(case.name, road)
    targets = [
        str(node.target)
        for graph in captured.graphs
        for module in graph.module.modules()
        for node in module.graph.nodes
        if node.op == "call_function"
    ]
    attentions = sum(target.startswith(("aten.softmax", "aten.scaled_dot_product")) for target in targets)
    assert len(captured.sites) + len(captured.sites.rejected) == attentions
    assert not captured.sites.rewritten


@pytest.mark.parametrize(("case", "road"), FOUND)
def test_projections(case: Case, road: str) -> None:
    """Every matrix of the attention's module is the projection of its site, by its FQN and with its shape."""
    state = case.build().state_dict()
    for site in of_case(case.name, road).sites:
        named = site.projections.named()
        for linear in named.values():
            assert isinstance(linear, Linear)
            assert state[linear.weight].shape == (linear.out_features, linear.in_features)
            assert linear.bias is None or state[linear.bias].shape == (linear.out_features,)
        module = re.sub(r"(\.attention){2}$", ".attention", site.name)  # YOLOS: the output is beside its attention
        matrices = {name for name, value in state.items() if name.startswith(f"{module}.") and value.ndim == 2}
        if case.name == "shared_block":  # a projection that runs twice belongs to no site alone
            assert named == {}
        elif re.match("timm_(dinov3_qkv|eva02)", case.name):  # the packed bias is put together in the graph
            assert set(named) == {"out"}
        else:
            assert {linear.weight for linear in named.values()} == matrices
            assert set(named) in ({"packed", "out"}, {"q", "k", "v", "out"})


@pytest.mark.parametrize(
    "case", [p.values[0] for p in FOUND if p.values[1] == "dynamo" and not p.marks], ids=lambda case: case.name
)
def test_roads_agree(case: Case) -> None:
    export, dynamo = (of_case(case.name, road) for road in ROADS)
    assert [facts(site) for site in export.sites] == [facts(site) for site in dynamo.sites]
    assert [(each.name, each.reason) for each in export.sites.rejected] == [
        (each.name, each.reason) for each in dynamo.sites.rejected
    ]


@pytest.mark.parametrize(("case", "road"), FOUND)
def test_captured_graph_computes_the_model(case: Case, road: str) -> None:
    """The values that the claims are held against are those of the model."""
    model, (args, kwargs) = case.build(), case.inputs()
    with no_fast_path():
        expected = pytree.tree_leaves(model(*args, **kwargs))
    actual = pytree.tree_leaves(of_case(case.name, road).output)
    expected, actual = ([x for x in leaves if isinstance(x, torch.Tensor)] for leaves in (expected, actual))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in found()])
def test_grid_is_row_major(case: Case) -> None:
    assert_row_major(of_case(case.name, "export"), case.inputs(), case.size)


@pytest.mark.parametrize(("case", "road"), OPEN)
def test_open_sizes(case: Case, road: str) -> None:
    """What stays open in the graph stays open in the site, and one graph serves other sizes."""
    fixed = of_case(case.name, road)
    model, (args, kwargs) = case.build(), case.inputs()
    with no_fast_path():
        if road == "export":
            captured = by_export(model, args, kwargs, case.dynamic_shapes(args, kwargs))
        else:
            captured = by_dynamo(model, args, kwargs, open_dims(case))
        assert [facts(site) | {"grid": None} for site in captured.sites] == [
            facts(site) | {"grid": None} for site in fixed.sites
        ]
        fixes_size = road == "dynamo" and case.name.startswith("timm")  # it turns the grid into Python numbers
        image = case.dynamic == "image" and not fixes_size
        for site in captured.sites:
            assert all(is_static(side) != image for side in site.grid)
            (batch,) = (dim for dim, role in enumerate(site.q.layout.roles) if "b" in role)
            assert not is_static(site.q.node.meta["val"].shape[batch])
        size = case.oblong if image and case.oblong else case.size
        attentions = captured.run(*case.inputs(batch=3, size=size))
    count = len(captured.graphs)
    assert count == 1, "the second size was captured again"
    assert len(attentions) == case.sites
    for attention in attentions:
        attention.assert_true(case.extra_before + math.prod(case.grid(size)) + case.extra_after)


# --- inputs and surroundings ------------------------------------------------------------------------------------------

ROAD = pytest.mark.parametrize("road", ROADS)
SURROUNDED = pytest.mark.parametrize("name", ["sdpa", "dinov2_repo", "bmm", "hf_dinov3_sdpa"])


def captured_by(road: str, model: nn.Module, inputs: tuple[Any, Any]) -> Captured:
    return (by_export if road == "export" else by_dynamo)(model, *inputs)


@pytest.mark.parametrize(
    ("name", "batch", "road"),
    sweep(
        product(["hf_dinov2_sdpa", "timm_dinov3_unfused", "bmm", "seq_first_bmm", "mha", "extra_both"], [1, 2], ROADS),
        quick=[
            ("hf_dinov2_sdpa", 1, "export"),
            ("timm_dinov3_unfused", 2, "export"),
            ("bmm", 1, "dynamo"),
            ("seq_first_bmm", 2, "dynamo"),
            ("mha", 1, "export"),
            ("extra_both", 2, "dynamo"),
        ],
    ),
)
def test_batches_and_oblong_sizes(name: str, batch: int, road: str) -> None:
    case = CASES[name]
    assert case.oblong is not None
    captured = captured_by(road, case.build(), case.inputs(batch=batch, size=case.oblong))
    assert_found(captured, case, case.oblong)


@ROAD
@pytest.mark.parametrize("size", [(8, 48), (32, 8), (8, 8)], ids=str)
def test_grids_of_one_row_or_column(size: tuple[int, int], road: str) -> None:
    """An axis of one patch is an axis like any other, or is refused; it is never read as something else."""
    case = CASES["sdpa"]
    captured = captured_by(road, case.build(), case.inputs(size=size))
    for site in captured.sites:
        assert site.grid == case.grid(size)
    assert len(captured.sites) + len(captured.sites.rejected) == case.sites


@pytest.mark.parametrize(
    ("name", "dtype", "road"),
    sweep(
        product(["sdpa", "dinov2_repo", "bmm", "hf_dinov3_sdpa"], [torch.bfloat16, torch.float16], ROADS),
        quick=[
            ("sdpa", torch.float16, "export"),
            ("dinov2_repo", torch.float16, "dynamo"),
            ("bmm", torch.bfloat16, "dynamo"),
            ("hf_dinov3_sdpa", torch.bfloat16, "export"),
        ],
    ),
)
def test_half_precision(name: str, dtype: torch.dtype, road: str) -> None:
    case = CASES[name]
    captured = captured_by(road, case.build().to(dtype), case.inputs(dtype=dtype))
    assert_found(captured, case, case.size)
    assert {site.dtype for site in captured.sites} == {dtype}


@SURROUNDED
def test_ambient_autocast(name: str) -> None:
    """Autocast around the call: a Dynamo graph holds no trace of it, so the graph's own record must."""
    case = CASES[name]
    with torch.autocast("cpu", torch.bfloat16):
        captured = by_dynamo(case.build(), *case.inputs())
    assert_found(captured, case, case.size)
    assert {site.autocast for site in captured.sites} == {torch.bfloat16}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@ROAD
def test_gradient_modes(context: Any, road: str) -> None:
    case = CASES["dinov2_repo"]
    with context():
        captured = captured_by(road, case.build(), case.inputs())
    assert_found(captured, case, case.size)


@ROAD
def test_autocast_of_the_model(road: str) -> None:
    assert {site.autocast for site in of_case("autocast_model", road).sites} == {torch.bfloat16}
    assert {site.autocast for site in of_case("sdpa", road).sites} == {None}


# --- projections that are not the site's alone ------------------------------------------------------------------------


class ValuesBeside(SeparateAttention):
    """Adds the values to the result, as local enhancements of position do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.heads(each(x)) for each in (self.q, self.k, self.v))
        return self.o((scale_on_product(q, k, v) + v).transpose(1, 2).reshape(x.shape))


class PackedBeside(Attention):
    """Adds the packed values to the result."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(x)
        return self.proj((scale_on_product(q, k, v) + v).transpose(1, 2).reshape(x.shape))


@ROAD
@pytest.mark.parametrize(
    ("attention", "roles"),
    [(ValuesBeside, {"q", "k"}), (partial(PackedBeside, scale_on_product), set())],
    ids=["separate", "packed"],
)
def test_projections_that_others_read(attention: Callable[[], nn.Module], roles: set[str], road: str) -> None:
    """A projection that another part of the graph reads as well does not belong to the site."""
    captured = captured_by(road, randomize(TinyViT(attention)), CASES["sdpa"].inputs())
    assert len(captured.sites) == 2
    for site in captured.sites:
        assert set(site.projections.named()) == roles


# --- what one operator runs as a whole --------------------------------------------------------------------------------


def test_fused_encoder_layer_is_refused_with_advice() -> None:
    """Without gradients, `nn.TransformerEncoderLayer` is one operator on the Dynamo road."""
    case = CASES["transformer_encoder_layer"]
    captured = by_dynamo(case.build(), *case.inputs())
    assert not captured.sites
    assert [each.name for each in captured.sites.rejected] == ["blocks.0.layer", "blocks.1.layer"]
    for rejection in captured.sites.rejected:
        assert "torch.backends.mha.set_fastpath_enabled(False)" in rejection.reason


# --- graph breaks -----------------------------------------------------------------------------------------------------


class BrokenViT(TinyViT):
    """A graph break after the first block."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.blocks[0](self.tokens(image))
        torch._dynamo.graph_break()
        return self.norm(self.blocks[1](x))


def test_graph_break() -> None:
    """What stands before the break is found; behind it the grid is not known, and the refusal says so."""
    case = CASES["dinov2_repo"]
    captured = by_dynamo(randomize(BrokenViT(Dinov2Attention)), *case.inputs())
    assert len(captured.graphs) == 2
    assert [site.name for site in captured.sites] == ["blocks.0.attn"]
    assert [each.name for each in captured.sites.rejected] == ["blocks.1.attn"]
    assert "grid" in captured.sites.rejected[0].reason
    captured.attentions[0].assert_true()
