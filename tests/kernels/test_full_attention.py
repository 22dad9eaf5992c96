"""`jetvit::full_attention` against the definition in fp64, and against the window that covers the grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from jetvit.kernels import full_attention, window_attention
from tests.kernels.naive import ABSENT, DTYPES, LAYOUTS, make_qkv, make_rope, masked_attention, rotated

side = st.integers(1, 7)
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
    scale=st.sampled_from([0.1, 0.5, 1.0]),
    seed=seed,
)
def test_is_attention_of_all_to_all(
    layout, dtype, rope, batch, heads, dim, grid_h, grid_w, before, after, scale, seed
) -> None:
    torch.manual_seed(seed)
    tokens = before + grid_h * grid_w + after
    q, k, v = make_qkv(layout, batch, tokens, heads, dim, dtype)
    rope_y, rope_x = make_rope(grid_h, grid_w, dim) if rope else (ABSENT, ABSENT)
    out = full_attention(q, k, v, rope_y, rope_x, grid_h, grid_w, before, scale)

    if rope:
        # The operator rounds the rotated q and k to their dtype, as every softmax kernel wants them.
        q, k = (rotated(x, rope_y, rope_x, before).to(dtype) for x in (q, k))
    expected = masked_attention(q, k, v, torch.ones(tokens, tokens, dtype=torch.bool), scale)
    assert out.dtype == dtype
    assert out.is_contiguous()
    # The output is a mean of v: probabilities and result are rounded once each. A score is summed in fp32 or wider, so
    # its own error counts only where that is the dtype, or where RoPE left q and k to be rounded to 16 bits.
    eps = torch.finfo(dtype).eps
    largest_score = (q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max() * scale).item()
    score_error = largest_score if rope or eps < 1e-6 else 0
    tolerance = (2 + score_error) * eps * v.abs().max().item()
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(grid_h=side, grid_w=side, before=extra, after=extra, slack=st.integers(0, 5), rope=st.booleans(), seed=seed)
def test_is_a_window_that_covers_the_grid(grid_h, grid_w, before, after, slack, rope, seed) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv("packed", 2, before + grid_h * grid_w + after, 2, 16, torch.float32)
    tables = make_rope(grid_h, grid_w, 16) if rope else (ABSENT, ABSENT)
    arguments = (q, k, v, *tables, grid_h, grid_w, before)
    windows = window_attention(*arguments, grid_h + slack, grid_w + slack, 0.25)
    torch.testing.assert_close(full_attention(*arguments, 0.25), windows, rtol=0, atol=1e-6)


def test_without_tables_it_is_sdpa_and_the_grid_plays_no_part() -> None:
    q, k, v = make_qkv("packed", 2, 20, 2, 8, torch.float32)
    expected = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=0.3).transpose(1, 2)
    for grid in ((4, 5, 0), (1, 1, 3)):
        out = full_attention(q, k, v, ABSENT, ABSENT, *grid, 0.3)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)


@settings(max_examples=30, deadline=None)
@given(grid_h=side, grid_w=side, before=extra, seed=seed)
def test_batch_of_two_is_two_batches(grid_h, grid_w, before, seed) -> None:
    torch.manual_seed(seed)
    q, k, v = make_qkv("packed", 2, before + grid_h * grid_w + 1, 2, 8, torch.float32)
    rope = make_rope(grid_h, grid_w, 8)
    both, first, second = (
        full_attention(q[b], k[b], v[b], *rope, grid_h, grid_w, before, 0.3)
        for b in (slice(0, 2), slice(0, 1), slice(1, 2))
    )
    torch.testing.assert_close(both, torch.cat([first, second]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({5: 0}, "grid_h must be at least 1, got 0"),
        ({5: 4}, "a 4×2 grid do not fit in 5 tokens"),
        ({3: ABSENT}, "rope_y and rope_x must both be given or both be absent"),
        ({4: torch.zeros(3, 2, 1)}, r"rope_x must be \[2, 2, 1\], got \[3, 2, 1\]"),
        ({2: torch.randn(1, 5, 1, 4).half()}, "v is torch.float16 but q is torch.float32"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[int, object], message: str) -> None:
    q = torch.randn(1, 5, 1, 4)
    arguments = [q, q, q, torch.zeros(2, 2, 1), torch.zeros(2, 2, 1), 2, 2, 1, 0.5]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(ValueError, match=f"jetvit::full_attention: .*{message}"):
        full_attention(*arguments)
