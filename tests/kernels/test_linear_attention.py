"""`jetvit::linear_attention` against its N×N weights and a convolution in loops."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.kernels import linear_attention
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS, convolve, convolve_by_taps
from tests.kernels.naive import (
    ABSENT,
    DTYPES,
    LAYOUTS,
    convolution,
    feature_attention,
    features,
    generated_kernel,
    make_qkv,
    make_rope,
    rotated,
)
from tests.zoo.quick import sweep

NO_WEIGHTS = (ABSENT,) * 4
side = st.integers(1, 6)
extra = st.integers(0, 3)
seed = st.integers(0, 2**31)
feature_maps = st.sampled_from(sorted(FEATURE_MAPS))


def make_weights(channels: int, size: int, hidden: int = 3, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    shapes = [(hidden, channels), (hidden,), (channels * size * size, hidden), (channels * size * size,)]
    return [torch.randn(shape, dtype=dtype) / 2 for shape in shapes]


@settings(max_examples=200, deadline=None)
@given(
    feature_map=feature_maps,
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    weight_dtype=st.sampled_from(DTYPES),
    rope=st.booleans(),
    batch=st.integers(1, 3),
    heads=st.integers(1, 2),
    dim=st.sampled_from([4, 8]),
    grid_h=side,
    grid_w=side,
    before=extra,
    after=extra,
    size=st.sampled_from([0, 1, 3, 5, 7]),
    static=st.booleans(),
    eps=st.sampled_from([1e-6, 0.5]),
    seed=seed,
)
def test_is_the_paper_s_formula(
    feature_map,
    layout,
    dtype,
    weight_dtype,
    rope,
    batch,
    heads,
    dim,
    grid_h,
    grid_w,
    before,
    after,
    size,
    static,
    eps,
    seed,
) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv(layout, batch, before + grid_h * grid_w + after, heads, dim, dtype)
    rope_y, rope_x = make_rope(grid_h, grid_w, dim) if rope else (ABSENT, ABSENT)
    w1, b1, w2, b2 = make_weights(heads * dim, size, dtype=weight_dtype) if size else NO_WEIGHTS
    if static:
        w1, b1, w2 = ABSENT, ABSENT, ABSENT
    out = linear_attention(q, k, v, rope_y, rope_x, w1, b1, w2, b2, grid_h, grid_w, before, size, eps, feature_map)

    if rope:
        q, k = (rotated(x, rope_y, rope_x, before) for x in (q, k))
    expected, den = feature_attention(q, k, v, eps, feature_map)
    if size:
        mean = v[:, before : before + grid_h * grid_w].double().mean(1)
        if static:
            kernel = b2.double().reshape(1, heads, dim, size, size)
        else:
            kernel = generated_kernel(mean, w1, b1, w2, b2, size)
        expected = expected + convolution(v, grid_h, grid_w, before, kernel)
    assert out.dtype == dtype
    assert out.is_contiguous()
    # Inputs are exact and sums are fp32 (fp64 for fp64): an error of a few fp32 steps, which a small denominator
    # magnifies, then one rounding to the output's dtype.
    step = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    largest = max(1.0, expected.abs().max().item(), v.abs().max().item())
    tolerance = 8 * step * largest * (1 + 1 / den) + torch.finfo(dtype).eps / 2 * expected.abs()
    assert ((out.double() - expected).abs() <= tolerance).all()


@settings(max_examples=60, deadline=None)
@given(feature_map=feature_maps, grid_h=side, grid_w=side, before=extra, after=extra, seed=seed)
def test_grid_tokens_may_be_permuted_when_the_convolution_is_off(
    feature_map, grid_h, grid_w, before, after, seed
) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv("packed", 2, before + grid_h * grid_w + after, 2, 8, torch.float64)
    order = torch.arange(q.shape[1])
    order[before : before + grid_h * grid_w] = before + torch.randperm(grid_h * grid_w)
    options = (ABSENT, ABSENT, *NO_WEIGHTS, grid_h, grid_w, before, 0, 1e-2, feature_map)
    permuted = linear_attention(q[:, order], k[:, order], v[:, order], *options)
    torch.testing.assert_close(permuted, linear_attention(q, k, v, *options)[:, order], rtol=1e-11, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(feature_map=feature_maps, grid_h=side, grid_w=side, before=extra, after=extra, seed=seed)
def test_a_constant_on_all_keys_changes_nothing_where_softmax_ignores_it(
    feature_map, grid_h, grid_w, before, after, seed
) -> None:
    """The law of "relu_centred" without RoPE; the other maps do not have it."""
    torch.manual_seed(seed)
    q, k, v = make_qkv("packed", 2, before + grid_h * grid_w + after, 2, 8, torch.float64)
    constant = torch.randn(2, 1, 2, 8, dtype=torch.float64)
    options = (ABSENT, ABSENT, *NO_WEIGHTS, grid_h, grid_w, before, 0, 1e-2, feature_map)
    shifted, plain = linear_attention(q, k + constant, v, *options), linear_attention(q, k, v, *options)
    same = torch.allclose(shifted, plain, rtol=1e-10, atol=1e-10)
    # Attention to a single token yields its v, but for eps.
    assert same if feature_map == "relu_centred" else not same or q.shape[1] == 1


@settings(max_examples=30, deadline=None)
@given(
    feature_map=feature_maps,
    grid_h=side,
    grid_w=side,
    before=extra,
    size=st.sampled_from([1, 3, 5, 7]),
    static=st.booleans(),
    seed=seed,
)
def test_batch_of_two_is_two_batches(feature_map, grid_h, grid_w, before, size, static, seed) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv("packed", 2, before + grid_h * grid_w + 1, 2, 8, torch.float64)
    weights = make_weights(16, size)
    if static:
        weights[:3] = [ABSENT] * 3
    options = (*make_rope(grid_h, grid_w, 8), *weights, grid_h, grid_w, before, size, 1e-2, feature_map)
    both, first, second = (
        linear_attention(q[b], k[b], v[b], *options) for b in (slice(0, 2), slice(0, 1), slice(1, 2))
    )
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=1e-10, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(
    height=side,
    width=side,
    size=st.sampled_from([1, 3, 5, 7]),
    images=st.sampled_from([(1, 1), (3, 3), (3, 1)]),
    seed=seed,
)
def test_sum_of_taps_is_the_convolution(height, width, size, images, seed) -> None:
    torch.manual_seed(seed)
    x = torch.randn(images[0], height, width, 6, dtype=torch.float64)
    kernel = torch.randn(images[1], 6, size, size, dtype=torch.float64)
    torch.testing.assert_close(convolve_by_taps(x, kernel), convolve(x, kernel), rtol=1e-12, atol=1e-12)


def test_negative_keys_give_zero() -> None:
    q, v = torch.rand(1, 6, 1, 4), torch.randn(1, 6, 1, 4)
    out = linear_attention(q, -q, v, ABSENT, ABSENT, *NO_WEIGHTS, 2, 3, 0, 0, 1e-6, "relu")
    assert torch.equal(out, torch.zeros_like(q))


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_sums_over_65k_large_fp16_tokens_stay_finite(feature_map: str) -> None:
    torch.manual_seed(0)
    q, k, v = (100 * torch.rand(1, 65536, 1, 8, dtype=torch.float16) for _ in range(3))
    out = linear_attention(q, k, v, ABSENT, ABSENT, *NO_WEIGHTS, 256, 256, 0, 0, 1e-6, feature_map)
    # With "relu" Σ k·v is 1.6e8 a channel, 2500 times the largest fp16.
    features_q, features_k = (x[:, :, 0] for x in features(q, k, feature_map))
    sums = torch.einsum("bnd,bne->bde", features_k, v.double()[:, :, 0])
    expected = features_q[:, :9] @ sums / (features_q[:, :9] @ features_k.sum(1).unsqueeze(-1) + 1e-6)
    torch.testing.assert_close(out[:, :9, 0].double(), expected, rtol=2**-11 + 1e-5, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_map": "elu"}, r"feature_map must be one of \['hedgehog', 'relu', 'relu_centred'\], got 'elu'"),
        ({"conv_size": 2}, r"conv_size must be one of \(0, 1, 3, 5, 7\), got 2"),
        ({"conv_size": -1}, "conv_size must be one of"),
        ({"conv_size": 9}, "conv_size must be one of"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"conv_size": 0}, "conv_size is 0, but w1, b1, w2 or b2 is given"),
        ({"b1": ABSENT}, "conv_size 3 needs w1, b1, w2 and b2, or b2 alone"),
        ({"w1": ABSENT, "b1": ABSENT, "w2": ABSENT, "b2": ABSENT}, "needs w1, b1, w2 and b2, or b2 alone"),
        ({"conv_size": 5}, r"b2 must be \[200\], got \[72\]"),
        ({"w1": torch.randn(3, 4)}, r"w1 must be \[3, 8\], got \[3, 4\]"),
        ({"b1": torch.randn(3, 1)}, r"b1 must be \[3\], got \[3, 1\]"),
        ({"b1": torch.tensor(1.0)}, r"b1 must be \[1\], got \[\]"),
        ({"b2": torch.ones(72, dtype=torch.int8)}, "b2 must be fp16, bf16, fp32 or fp64, got torch.int8"),
        ({"w2": torch.randn(72, 4)}, r"w2 must be \[72, 3\], got \[72, 4\]"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change: dict[str, object], message: str) -> None:
    q = torch.randn(1, 6, 2, 4)
    w1, b1, w2, b2 = make_weights(8, 3)
    arguments = {"q": q, "k": q, "v": q, "rope_y": ABSENT, "rope_x": ABSENT, "w1": w1, "b1": b1, "w2": w2, "b2": b2}
    options = {"grid_h": 2, "grid_w": 3, "extra_before": 0, "conv_size": 3, "eps": 1e-6, "feature_map": "relu"}
    linear_attention(**arguments, **options)
    with pytest.raises(ValueError, match=f"jetvit::linear_attention: .*{message}"):
        linear_attention(**{**arguments, **options, **change})


# --- the roads of PyTorch, by feature map (tests/kernels/test_registration.py has "relu") -----------------------------


def rotated_arguments(feature_map: str, dtype: torch.dtype = torch.float64, size: int = 3) -> list[object]:
    torch.manual_seed(0)
    tensors = [*make_qkv("packed", 2, 2 + 6 + 1, 2, 4, dtype), *(x.to(dtype) for x in make_rope(2, 3, 4))]
    tensors += make_weights(8, size, 2, dtype) if size else [ABSENT.to(dtype)] * 4
    return [*(x.requires_grad_(x.numel() > 0) for x in map(torch.clone, tensors)), 2, 3, 2, size, 1e-2, feature_map]


@pytest.mark.parametrize(
    ("feature_map", "size"),
    sweep(product(["relu_centred", "hedgehog"], [0, 3]), quick=[("relu_centred", 0), ("hedgehog", 3)]),
)
def test_opcheck_and_gradients(feature_map: str, size: int) -> None:
    op = torch.ops.jetvit.linear_attention.default
    torch.library.opcheck(op, rotated_arguments(feature_map, size=size))
    assert torch.autograd.gradcheck(op, rotated_arguments(feature_map, size=size), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_gradients_of_16_bits_are_those_of_fp64(feature_map: str, dtype: torch.dtype) -> None:
    arguments = rotated_arguments(feature_map, dtype, size=0)
    arguments[3:5] = [table.detach().float() for table in arguments[3:5]]
    exact = [x.detach().double().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x for x in arguments]
    for each in (arguments, exact):
        linear_attention(*each).sum().backward()
    for ours, theirs in zip(arguments[:3], exact[:3], strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("feature_map", sweep(["relu_centred", "hedgehog"], quick=["hedgehog"]))
def test_one_export_serves_every_size(feature_map: str) -> None:
    class Block(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            height, width = image.shape[1:3]
            tokens = torch.cat([image.mean((1, 2))[:, None], image.flatten(1, 2)], dim=1)
            q, k, v = tokens.unflatten(-1, (3, 2, 4)).unbind(2)
            absent = image.new_empty(0)
            return linear_attention(q, k, v, *[absent] * 6, height, width, 1, 0, 1e-6, feature_map)

    sizes = dict.fromkeys((0, 1, 2), torch.export.Dim.DYNAMIC)
    program = torch.export.export(Block(), (torch.randn(5, 9, 13, 24),), dynamic_shapes=(sizes,))
    compiled = torch.compile(Block(), backend="aot_eager", dynamic=True, fullgraph=True)  # traces the reference
    for image in (torch.randn(2, 3, 4, 24), torch.randn(4, 10, 6, 24)):
        torch.testing.assert_close(program.module()(image), Block()(image), rtol=0, atol=1e-6)
        torch.testing.assert_close(compiled(image), Block()(image), rtol=0, atol=1e-6)
