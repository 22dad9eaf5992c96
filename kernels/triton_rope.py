"""Loads of q and k by the halves of head_dim, rotated on the way; device functions that the kernels share.

Every kernel holds q and k as two tiles [token, HALF], the halves that rotary embedding pairs, where HALF is
head_dim / 2 rounded up to a power of two and at least 16. So the pair of an entry lies in the same thread, cos and sin
are loaded once for both, and a head_dim such as 80 or 96 is padded once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_halves(
    base, offset, valid, rope_y, rope_x, y, x, rotated,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Both halves of the rows at base + offset, fp32 [token, HALF], zero where not valid or past head_dim.

    offset: int64 [token], in elements. valid, rotated: bool [token]. y, x: int32 [token], the place in the token grid,
    read where rotated. rope_y, rope_x: fp32 [grid, 2, head_dim / 4], contiguous.
    """
    j = tl.arange(0, HALF)
    inside = valid[:, None] & (j < HEAD_DIM // 2)[None, :]
    place = base + offset[:, None] + j[None, :]
    first = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(place + HEAD_DIM // 2, mask=inside, other=0.0).to(tl.float32)
    if ROPE:
        QUARTER: tl.constexpr = HEAD_DIM // 4
        turns = inside & rotated[:, None]
        on_y = (j < QUARTER)[None, :]
        # Whole addresses are chosen between: of a chosen base Triton 3.9 no longer knows that 16 bytes are aligned.
        column = (j % QUARTER)[None, :]
        table = tl.where(
            on_y, rope_y + y[:, None] * (2 * QUARTER) + column, rope_x + x[:, None] * (2 * QUARTER) + column
        )
        cos = tl.load(table, mask=turns, other=1.0)
        sin = tl.load(table + QUARTER, mask=turns, other=0.0)
        turned = first * cos - second * sin
        second = second * cos + first * sin
        first = turned
    return first, second
