"""`jetvit::window_attention` against full attention with an explicit mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from jetvit.kernels import window_attention
from jetvit.kernels.window_attention.reference import masked_windows, sliced_windows
from tests.kernels.naive import ABSENT, DTYPES, LAYOUTS, make_qkv, make_rope, masked_attention, rotated, window_mask

side = st.integers(1, 7)
window = st.integers(1, 9)
extra = st.integers(0, 3)
seed = st.integers(0, 2**31)


@settings(max_examples=120, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    rope=st.booleans(),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    dim=st.sampled_from([4, 8, 20]),
    grid_h=side,
    grid_w=side,
    before=extra,
    after=extra,
    window_h=window,
    window_w=window,
    scale=st.sampled_from([0.1, 0.5, 1.0]),
    seed=seed,
)
def test_is_full_attention_under_the_window_mask(
    layout, dtype, rope, batch, heads, dim, grid_h, grid_w, before, after, window_h, window_w, scale, seed
) -> None:
    torch.manual_seed(seed)
    tokens = before + grid_h * grid_w + after
    q, k, v = make_qkv(layout, batch, tokens, heads, dim, dtype)
    rope_y, rope_x = make_rope(grid_h, grid_w, dim) if rope else (ABSENT, ABSENT)
    out = window_attention(q, k, v, rope_y, rope_x, grid_h, grid_w, before, window_h, window_w, scale)

    if rope:
        # The operator rounds the rotated q and k to their dtype, as every softmax kernel wants them.
        q, k = (rotated(x, rope_y, rope_x, before).to(dtype) for x in (q, k))
    mask = window_mask(tokens, grid_h, grid_w, before, window_h, window_w)
    expected = masked_attention(q, k, v, mask, scale)
    assert out.dtype == dtype
    assert out.is_contiguous()
    # The output is a mean of v: probabilities and result are rounded once each. A score is summed in fp32 or wider, so
    # its own error counts only where that is the dtype, or where RoPE left q and k to be rounded to 16 bits.
    eps = torch.finfo(dtype).eps
    largest_score = (q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max() * scale).item()
    score_error = largest_score if rope or eps < 1e-6 else 0
    tolerance = (2 + score_error) * eps * v.abs().max().item()
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(grid_h=side, grid_w=side, window_h=window, window_w=window, extras=extra, batch=st.integers(1, 3), seed=seed)
def test_masked_windows_are_sliced_windows(grid_h, grid_w, window_h, window_w, extras, batch, seed) -> None:
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, batch, grid_h, grid_w, 2, 8, dtype=torch.float64)
    extra_k, extra_v = torch.randn(2, batch, extras, 2, 8, dtype=torch.float64)
    arguments = (q, k, v, extra_k, extra_v, window_h, window_w, 0.4)
    torch.testing.assert_close(masked_windows(*arguments), sliced_windows(*arguments), rtol=0, atol=1e-14)
    if not extras:
        absent = (q, k, v, None, None, window_h, window_w, 0.4)
        for function in (masked_windows, sliced_windows):
            assert torch.equal(function(*absent), function(*arguments))


@settings(max_examples=30, deadline=None)
@given(grid_h=side, grid_w=side, before=extra, after=extra, slack=st.integers(0, 5), seed=seed)
def test_window_that_covers_the_grid_is_full_attention(grid_h, grid_w, before, after, slack, seed) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv("packed", 2, before + grid_h * grid_w + after, 2, 16, torch.float32)
    out = window_attention(q, k, v, ABSENT, ABSENT, grid_h, grid_w, before, grid_h + slack, grid_w + slack, 0.25)
    full = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=0.25).transpose(1, 2)
    torch.testing.assert_close(out, full, rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(grid_h=side, grid_w=side, before=extra, window_h=window, window_w=window, seed=seed)
def test_batch_of_two_is_two_batches(grid_h, grid_w, before, window_h, window_w, seed) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv("packed", 2, before + grid_h * grid_w + 1, 2, 8, torch.float32)
    rope = make_rope(grid_h, grid_w, 8)
    both, first, second = (
        window_attention(q[b], k[b], v[b], *rope, grid_h, grid_w, before, window_h, window_w, 0.3)
        for b in (slice(0, 2), slice(0, 1), slice(1, 2))
    )
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=0, atol=1e-6)


def test_a_far_token_is_unseen_and_an_extra_token_is_seen_by_all() -> None:
    torch.manual_seed(0)
    q, k, v = make_qkv("packed", 1, 2 + 64, 2, 8, torch.float32)
    arguments = (ABSENT, ABSENT, 8, 8, 1, 4, 4, 0.3)
    out = window_attention(q, k, v, *arguments)
    for token, seen_by in ((1, 16 + 2), (0, 66), (65, 66)):
        changed = v.clone()
        changed[:, token] += 1
        differs = (window_attention(q, k, changed, *arguments) != out).any(dim=-1).any(dim=-1)
        assert differs.sum() == seen_by


@pytest.mark.parametrize(("name", "change"), [("window_h", {8: 0}), ("window_w", {9: -1})])
def test_a_window_without_tokens_is_refused(name: str, change: dict[int, int]) -> None:
    q = torch.randn(1, 4, 1, 4)
    arguments = [q, q, q, ABSENT, ABSENT, 2, 2, 0, 2, 2, 0.5]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(ValueError, match=f"jetvit::window_attention: {name} must be at least 1"):
        window_attention(*arguments)
