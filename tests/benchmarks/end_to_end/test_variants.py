"""The variants of the end-to-end benchmark: the plain mixers, and how each variant is made ready."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.end_to_end.models import PAPER_SIZE, build, pixels, shape_of
from benchmarks.end_to_end.plain import full, in_plain_pytorch, linear, window
from benchmarks.end_to_end.variants import (
    ANCHOR,
    FIRST,
    MORE,
    NEXT,
    TUNED,
    VARIANTS,
    Subject,
    _graph_cache,
    difference,
    make_ready,
    release,
)
from jetvit.cost_model.measuring.timing import generator_shapes
from jetvit.kernels.full_attention.reference import full_attention_reference
from jetvit.kernels.linear_attention.reference import linear_attention_reference
from jetvit.kernels.window_attention.reference import window_attention_reference
from tests.zoo.quick import sweep

CPU = torch.device("cpu")


def subject(name: str, batch: int = 1) -> Subject:
    size = pixels(name, PAPER_SIZE, dry=True)
    return Subject(
        build(name, CPU, torch.float32, dry=True), torch.randn(batch, 3, *size), shape_of(name, dry=True), window=4
    )


@st.composite
def operands(draw: st.DrawFn) -> tuple[list[Tensor], tuple[int, int, int]]:
    """q, k, v, rope_y, rope_x in fp64, and grid_h, grid_w, extra_before."""
    batch, heads, dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 4 * draw(st.integers(1, 4))
    grid_h, grid_w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    before, after = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    qkv = torch.randn(batch, before + grid_h * grid_w + after, 3, heads, dim, generator=generator, dtype=torch.float64)
    tables = [torch.empty(0), torch.empty(0)]
    if draw(st.booleans()):
        angles = [
            3 * torch.randn(side, dim // 4, generator=generator, dtype=torch.float64) for side in (grid_h, grid_w)
        ]
        tables = [torch.stack([each.cos(), each.sin()], dim=1) for each in angles]
    return [*qkv.unbind(2), *tables], (grid_h, grid_w, before)


@settings(deadline=None, max_examples=40)
@given(operands(), st.sampled_from([1, 3, 5]), st.floats(1e-6, 1e-3))
def test_plain_linear_is_the_operator(given: tuple, conv_size: int, eps: float) -> None:
    values, place = given
    channels = values[0].shape[2] * values[0].shape[3]
    weights = [torch.randn(shape, dtype=torch.float64) for shape in generator_shapes(channels, conv_size)]
    arguments = (*values, *weights, *place, conv_size, eps, "relu")
    torch.testing.assert_close(linear(*arguments), linear_attention_reference(*arguments), rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(operands(), st.integers(1, 10), st.integers(1, 10), st.floats(0.05, 2))
def test_plain_window_is_the_operator(given: tuple, window_h: int, window_w: int, scale: float) -> None:
    values, place = given
    arguments = (*values, *place, window_h, window_w, scale)
    torch.testing.assert_close(window(*arguments), window_attention_reference(*arguments), rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=20)
@given(operands(), st.floats(0.05, 2))
def test_plain_full_is_the_operator(given: tuple, scale: float) -> None:
    values, place = given
    arguments = (*values, *place, scale)
    torch.testing.assert_close(full(*arguments), full_attention_reference(*arguments), rtol=1e-6, atol=1e-7)


def test_plain_mixers_keep_the_dtype() -> None:
    q, k, v = torch.randn(1, 22, 3, 2, 8).bfloat16().unbind(2)
    tables = (torch.rand(4, 2, 2), torch.rand(5, 2, 2))
    weights = [torch.randn(shape).bfloat16() for shape in generator_shapes(16, 3)]
    assert linear(q, k, v, *tables, *weights, 4, 5, 1, 3, 1e-6, "relu").dtype == torch.bfloat16
    assert window(q, k, v, *tables, 4, 5, 1, 3, 3, 0.3).dtype == torch.bfloat16
    assert full(q, k, v, *tables, 4, 5, 1, 0.3).dtype == torch.bfloat16


def test_the_anchor_comes_first_and_names_are_unique() -> None:
    assert FIRST[0] is ANCHOR
    assert len(VARIANTS) == len(FIRST) + len(NEXT) + len(TUNED) + len(MORE) == 15


def test_a_graph_that_was_found_on_disk_is_no_compile_time() -> None:
    assert _graph_cache(Counter()) == ""
    assert _graph_cache(Counter(fxgraph_cache_hit=2)) == "hit"
    assert _graph_cache(Counter(fxgraph_cache_hit=2, fxgraph_cache_miss=1)) == "miss"
    assert _graph_cache(Counter(fxgraph_cache_bypass=1)) == "miss"


@pytest.mark.parametrize("name", sweep(["DINOv3-B", "DepthAnythingV2-L"], quick=["DINOv3-B"]))
def test_plain_hybrids_hold_no_operator_of_ours_and_compute_the_same(name: str) -> None:
    this = subject(name, batch=2)
    program = this.hybrid(2)
    assert program is this.hybrid(2)
    assert sum("jetvit" in str(node.target) for node in program.graph.nodes) == 3
    plain = in_plain_pytorch(program)
    assert not any("jetvit" in str(node.target) for node in plain.graph.nodes)
    assert sum("jetvit" in str(node.target) for node in program.module().graph.nodes) == 3
    with torch.inference_mode():
        assert difference(program.module()(this.images), this.expected(2)) < 1e-5
        assert difference(this.model(this.images), this.expected(2)) > 0.01


@pytest.mark.slow
def test_no_variant_gets_what_another_compiled() -> None:
    """Else the variants that differ in the backend of SDPA alone would all be the first of them."""
    this = subject("DINOv3-B")
    counters.clear()
    kept = [make_ready(VARIANTS[name], this) for name in ("compiled", "compiled flash", "max-autotune")]
    assert counters["stats"]["unique_graphs"] == 3
    for ready in kept:
        assert ready.sampler() > 0
        assert ready.difference is not None
        assert ready.difference < 1e-5
        assert ready.timing == "clock"
        assert ready.compile_s is not None
    assert counters["stats"]["unique_graphs"] == 3
    release(CPU)


def test_what_is_not_comparable_is_no_small_difference() -> None:
    assert difference({"a": torch.tensor([3.0, 4.0])}, [torch.tensor([3.0, 4.5])]) == pytest.approx(0.5 / 29.25**0.5)
    assert not difference(torch.tensor([torch.nan]), [torch.ones(1)]) < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["DINOv3-B", "DepthAnythingV2-L"])
def test_variants_on_a_gpu_are_replayed_graphs_that_compute_the_same(name: str) -> None:
    device = torch.device("cuda")
    model = build(name, device, torch.bfloat16, dry=True)
    images = torch.randn(1, 3, *pixels(name, PAPER_SIZE, dry=True), device=device, dtype=torch.bfloat16)
    this = Subject(model, images, shape_of(name, dry=True), window=4)
    anchor = make_ready(ANCHOR, this)
    for each in (VARIANTS["hybrid 2 FA"], VARIANTS["hybrid 2 FA plain"]):
        ready = make_ready(each, this)
        assert ready.timing == anchor.timing == "graph"
        assert ready.difference is not None
        assert ready.difference < 0.05
        assert ready.peak_memory_gb is not None
        assert ready.peak_memory_gb > 0
        release(device)
        assert anchor.sampler() > 0
    assert make_ready(VARIANTS["eager flash"], this).timing == "events"
