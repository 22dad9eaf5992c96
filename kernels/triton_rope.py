"""Loads of q, k and v, and the rotary embedding on the way; device functions that the kernels share.

With RoPE q and k are held as two tiles [token, HALF_D], the halves of head_dim that RoPE pairs. HALF_D is head_dim / 2
rounded up to a power of two, at least 16. Both entries of a pair lie in one thread, cos and sin are loaded once for
both, and a head_dim such as 80 or 96 is padded once. `join_halves` puts them side by side, padded columns included.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(ptr, offset, valid, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load rows [token, BLOCK_D] at ptr + offset as they stand; zero where not valid or past head_dim.

    offset: int64 [token], in elements. valid: bool [token].
    """
    d = tl.arange(0, BLOCK_D)
    return tl.load(ptr + (offset[:, None] + d[None, :]), mask=valid[:, None] & (d < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def load_halves(ptr, offset, valid, HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr):
    """Load both halves of rows at ptr + offset, fp32 [token, HALF_D]; zero where not valid or past head_dim."""
    j = tl.arange(0, HALF_D)
    inside = valid[:, None] & (j < HEAD_DIM // 2)[None, :]
    place = ptr + (offset[:, None] + j[None, :])
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(place + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def load_rotated_halves(
    ptr, offset, valid, rope_y_ptr, rope_x_ptr, y, x, rotated,
    HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Load both halves as `load_halves`, rotated where `rotated` if ROPE.

    y, x: int32 [token], the position in the token grid, read where rotated, a bool [token]. rope_y, rope_x: fp32
    [grid, 2, head_dim / 4], contiguous. They stay in fp32 for 16-bit q and k: to unpack 16 bits costs more
    instructions than it saves loads.
    """
    first, second = load_halves(ptr, offset, valid, HEAD_DIM, HALF_D)
    if ROPE:
        QUARTER: tl.constexpr = HEAD_DIM // 4
        j = tl.arange(0, HALF_D)
        turns = (valid & rotated)[:, None] & (j < HEAD_DIM // 2)[None, :]
        on_y = (j < QUARTER)[None, :]
        # Select whole addresses: of a selected base Triton 3.9 no longer knows that it is aligned to 16 bytes.
        column = (j % QUARTER)[None, :]
        table = tl.where(
            on_y, rope_y_ptr + y[:, None] * (2 * QUARTER) + column, rope_x_ptr + x[:, None] * (2 * QUARTER) + column
        )
        # Cached in L1, which the tables fit in. By default a pipelined load of 16 bytes bypasses L1, and the tables
        # would take as much of L2's bandwidth as k and v together.
        cos = tl.load(table, mask=turns, other=1.0, cache_modifier=".ca")
        sin = tl.load(table + QUARTER, mask=turns, other=0.0, cache_modifier=".ca")
        rotated_first = first * cos - second * sin
        second = second * cos + first * sin
        first = rotated_first
    return first, second


@triton.jit
def join_halves(first, second):
    """Return [first | second], [token, 2·HALF_D], of two tiles [token, HALF_D]."""
    return tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), (first.shape[0], 2 * first.shape[1]))


@triton.jit
def load_rotated(
    ptr, offset, valid, rope_y_ptr, rope_x_ptr, y, x, rotated,
    HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, BLOCK_D: tl.constexpr, ROPE: tl.constexpr, SHRINK: tl.constexpr,
):  # fmt: skip
    """Load rows of q or k: with RoPE rotated, times SHRINK, [token, 2·HALF_D]; else by `load_rows`."""
    # With an `else`: Triton compiles what follows a return as well, and refuses two shapes.
    if not ROPE:
        return load_rows(ptr, offset, valid, HEAD_DIM, BLOCK_D)
    else:
        first, second = load_rotated_halves(
            ptr, offset, valid, rope_y_ptr, rope_x_ptr, y, x, rotated, HEAD_DIM, HALF_D, ROPE
        )
        dtype: tl.constexpr = ptr.dtype.element_ty
        return join_halves((first * SHRINK).to(dtype), (second * SHRINK).to(dtype))
