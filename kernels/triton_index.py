"""Device functions that the kernels share: integer division, positions in the token grid, splits of the tokens."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def reciprocal_of(divisor):
    """Return the reciprocal that `fast_divide` takes for an int32 divisor of at least 1."""
    # A cast, because Inductor makes a constant of a scalar that is 1, and a constant has no `.to`.
    return 0xFFFFFFFF // tl.cast(divisor, tl.uint32)


@triton.jit
def fast_divide(i, divisor, reciprocal):
    """Return i // divisor for int32 i ≥ 0, in fewer instructions than the compiler's division of a tensor."""
    estimate = tl.umulhi(i.to(tl.uint32), reciprocal).to(tl.int32)  # exact, or one too small
    return estimate + (i - estimate * divisor >= divisor).to(tl.int32)


@triton.jit
def grid_position(token, extra_before, grid_h, grid_w, reciprocal):
    """Return row, column and whether a token is on the grid; 0 and below 0 for the tokens before it.

    token: int32. reciprocal: of grid_w.
    """
    index = token - extra_before
    on_grid = (index >= 0) & (index < grid_h * grid_w)
    y = fast_divide(tl.maximum(index, 0), grid_w, reciprocal)
    return y, index - y * grid_w, on_grid


@triton.jit
def extra_token(index, extra_before, grid_tokens):
    """Return the token of each extra token, counted from 0: those before the grid, then those after it."""
    return tl.where(index < extra_before, index, index + grid_tokens)


@triton.jit
def split_range(split, splits, tokens, BLOCK_N: tl.constexpr):
    """Return the first token of a split and the one past its last.

    Splits are blocks of BLOCK_N tokens and differ by at most one. None is empty if there are as many blocks as splits.
    """
    blocks = tl.cdiv(tokens, BLOCK_N)
    first = tl.cdiv(split * blocks, splits) * BLOCK_N
    last = tl.cdiv((split + 1) * blocks, splits) * BLOCK_N
    return first, tl.minimum(last, tokens)
