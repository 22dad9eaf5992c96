"""The forms for TensorRT compute what the references compute, at any size, and are of the operators they should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from jetvit.kernels.full_attention.reference import full_attention_reference
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS, linear_attention_reference
from jetvit.kernels.window_attention.reference import window_attention_reference
from jetvit.passes.targets.tensorrt import decompositions
from tests.kernels.naive import ABSENT, DTYPES, LAYOUTS, make_qkv, make_rope
from tests.kernels.test_linear_attention import make_weights

CLOSE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
aten = torch.ops.aten
side, extra = st.integers(1, 7), st.integers(0, 3)


@st.composite
def operands(draw: st.DrawFn) -> dict[str, Any]:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    grid, before = (draw(side), draw(side)), draw(extra)
    tokens = before + grid[0] * grid[1] + draw(extra)
    dtype = draw(st.sampled_from(DTYPES))
    qkv = make_qkv(draw(st.sampled_from(LAYOUTS)), draw(st.integers(1, 3)), tokens, 2, 8, dtype)
    rope = make_rope(*grid, 8) if draw(st.booleans()) else (ABSENT, ABSENT)
    return {"tensors": (*qkv, *rope), "place": (*grid, before), "dtype": dtype}


def check(function: Callable[..., Tensor], reference: Callable[..., Tensor], of: dict[str, Any], *args: Any) -> None:
    ours, theirs = function(*args), reference(*args)
    assert (ours.shape, ours.dtype, ours.is_contiguous()) == (theirs.shape, theirs.dtype, True)
    torch.testing.assert_close(ours, theirs, rtol=CLOSE[of["dtype"]], atol=CLOSE[of["dtype"]])


@settings(max_examples=60)
@given(operands(), side, side)
def test_window_attention(of: dict[str, Any], window_h: int, window_w: int) -> None:
    args = (*of["tensors"], *of["place"], window_h, window_w, 0.4)
    check(decompositions.window_attention, window_attention_reference, of, *args)


@settings(max_examples=60)
@given(operands(), st.sampled_from([0, 1, 3, 5, 7]), st.booleans(), st.sampled_from(sorted(FEATURE_MAPS)))
def test_linear_attention(of: dict[str, Any], size: int, static: bool, feature_map: str) -> None:
    weights = make_weights(16, size) if size else [ABSENT] * 4
    if static:
        weights = [*[ABSENT] * 3, weights[3]]
    args = (*of["tensors"], *weights, *of["place"], size, 1e-6, feature_map)
    check(decompositions.linear_attention, linear_attention_reference, of, *args)


@settings(max_examples=20)
@given(operands())
def test_full_attention(of: dict[str, Any]) -> None:
    args = (*of["tensors"], *of["place"], 0.4)
    check(decompositions.full_attention, full_attention_reference, of, *args)


def graph_of(function: Callable[..., Tensor], *args: Any) -> torch.fx.Graph:
    tensors = [x for x in args if isinstance(x, Tensor)]
    rest = args[len(tensors) :]
    return make_fx(lambda *given: function(*given, *rest), pre_dispatch=True)(*tensors).graph


def targets(graph: torch.fx.Graph) -> list[Any]:
    return [node.target for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(("window", "kinds"), [((3, 3), 1), ((4, 3), 2), ((4, 4), 4), ((9, 9), 1)])
def test_windows_of_one_kind_are_one_attention(window: tuple[int, int], kinds: int) -> None:
    """A 9×9 grid: windows of 4 leave a short last row and column; windows of 3 leave none."""
    qkv = make_qkv("packed", 2, 81, 2, 8, torch.float32)
    graph = graph_of(decompositions.window_attention, *qkv, ABSENT, ABSENT, 9, 9, 0, *window, 1.0)
    side_h, side_w = -(-9 // -(-9 // window[0])), -(-9 // -(-9 // window[1]))
    expected = (1 + (9 % side_h > 0)) * (1 + (9 % side_w > 0))
    assert targets(graph).count(aten.scaled_dot_product_attention.default) == expected
    assert kinds >= expected


@pytest.mark.parametrize(("before", "after", "attentions"), [(0, 0, 1), (1, 0, 2), (0, 2, 2), (5, 1, 2)])
def test_no_tensor_is_empty(before: int, after: int, attentions: int) -> None:
    """TensorRT has no tensors of length 0: where there are no extra tokens, nothing is done for them."""
    qkv = make_qkv("packed", 2, 6 + before + after, 2, 8, torch.float32)
    graph = graph_of(decompositions.window_attention, *qkv, ABSENT, ABSENT, 2, 3, before, 2, 3, 1.0)
    values = [node.meta["val"] for node in graph.nodes if node.op == "call_function"]
    assert all(value.numel() for value in values)
    assert targets(graph).count(aten.scaled_dot_product_attention.default) == attentions


def test_a_fixed_kernel_is_a_convolution_and_a_generated_one_is_not() -> None:
    qkv = make_qkv("packed", 2, 12, 2, 8, torch.float32)
    weights = make_weights(16, 3)
    rest = (3, 4, 0, 3, 1e-6, "relu")
    fixed = graph_of(decompositions.linear_attention, *qkv, ABSENT, ABSENT, *[ABSENT] * 3, weights[3], *rest)
    assert targets(fixed).count(aten.conv2d.default) == 1
    made = graph_of(decompositions.linear_attention, *qkv, ABSENT, ABSENT, *weights, *rest)
    assert aten.conv2d.default not in targets(made)
    assert aten.split_with_sizes.default not in targets(made)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_fp32(dtype: torch.dtype) -> None:
    """Beyond 65504, the largest fp16; and no product of it is in 16 bits."""
    qkv = [torch.full((1, 4096, 1, 8), 8.0, dtype=dtype) for _ in range(3)]
    graph = graph_of(decompositions.linear_attention, *qkv, *[ABSENT] * 6, 64, 64, 0, 0, 1e-6, "relu")
    products = [
        node.meta["val"].dtype for node in graph.nodes if node.target in (aten.matmul.default, aten.sum.dim_IntList)
    ]
    assert products == [torch.float32] * 4
    out = decompositions.linear_attention(*qkv, *[ABSENT] * 6, 64, 64, 0, 0, 1e-6, "relu")
    torch.testing.assert_close(out, qkv[2])
