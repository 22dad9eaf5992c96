"""The Triton kernel of full attention: the rotation of q and k, on the way from the projections to SDPA."""

from __future__ import annotations

import triton
import triton.language as tl

from jetvit.kernels.triton_index import grid_position, reciprocal_of
from jetvit.kernels.triton_rope import load_rotated_halves


@triton.jit(do_not_specialize=["batch_heads", "tokens", "grid_h", "grid_w", "extra_before"])
def rotate(
    x_ptr, rope_y_ptr, rope_x_ptr, out_ptr,
    stride_xb, stride_xn, stride_xh,
    batch_heads, heads, tokens, grid_h, grid_w, extra_before,
    HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Rotate BLOCK_N tokens of one head of x into out, contiguous [batch, token, head, head_dim]."""
    batch_head = tl.program_id(0) % batch_heads
    batch, head = (batch_head // heads).to(tl.int64), (batch_head % heads).to(tl.int64)
    token = (tl.program_id(0) // batch_heads) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = token < tokens
    y, x, on_grid = grid_position(token, extra_before, grid_h, grid_w, reciprocal_of(grid_w))
    first, second = load_rotated_halves(
        x_ptr + batch * stride_xb + head * stride_xh, token.to(tl.int64) * stride_xn, valid, rope_y_ptr, rope_x_ptr,
        y, x, on_grid, HEAD_DIM, HALF_D, True,
    )  # fmt: skip
    j = tl.arange(0, HALF_D)
    inside = valid[:, None] & (j < HEAD_DIM // 2)[None, :]
    row = ((batch * tokens + token.to(tl.int64)) * heads + head) * HEAD_DIM
    result = out_ptr + row[:, None] + j[None, :]
    tl.store(result, first.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(result + HEAD_DIM // 2, second.to(out_ptr.dtype.element_ty), mask=inside)
