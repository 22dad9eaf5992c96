"""The Triton kernel of full attention: the rotation of q and k, on the way from the projections to SDPA."""

from __future__ import annotations

import triton
import triton.language as tl

from jetvit.kernels.triton_rope import load_halves


@triton.jit(do_not_specialize=["batch_heads", "tokens", "grid_w", "grid_tokens", "extra_before"])
def rotate(
    x, rope_y, rope_x, out,
    x_batch, x_token, x_head,
    batch_heads, heads, tokens, grid_w, grid_tokens, extra_before,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """TOKENS tokens of one head of x, rotated, into out, contiguous [batch, token, head, head_dim]."""
    batch_head = tl.program_id(0) % batch_heads
    batch, head = (batch_head // heads).to(tl.int64), (batch_head % heads).to(tl.int64)
    token = (tl.program_id(0) // batch_heads) * TOKENS + tl.arange(0, TOKENS)
    valid = token < tokens
    place = token - extra_before
    first, second = load_halves(
        x + batch * x_batch + head * x_head, token.to(tl.int64) * x_token, valid, rope_y, rope_x,
        place // grid_w, place % grid_w, (place >= 0) & (place < grid_tokens), HEAD_DIM, HALF, True,
    )  # fmt: skip
    j = tl.arange(0, HALF)
    inside = valid[:, None] & (j < HEAD_DIM // 2)[None, :]
    row = ((batch * tokens + token.to(tl.int64)) * heads + head) * HEAD_DIM
    result = out + row[:, None] + j[None, :]
    tl.store(result, first.to(out.dtype.element_ty), mask=inside)
    tl.store(result + HEAD_DIM // 2, second.to(out.dtype.element_ty), mask=inside)
