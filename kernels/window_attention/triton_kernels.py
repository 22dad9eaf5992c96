"""The Triton kernels of window attention.

    attend_windows   q, k, v → the output of the grid tokens, one block of queries of one window a program; in other
                     programs, for each split of the tokens, what the extra tokens see of it: maximum, sum, values
    combine_extra    these partial results → the output of the extra tokens

Tokens are read where they stand in [batch, token, head, dim]; nothing is cut out, padded or copied. A window's queries
see two runs of keys: first, in masked blocks, the extra tokens and what of the window does not fill a block; then the
full blocks of the window, where nothing is masked. Windows at the border are as small as they are. Softmax is online,
to the base 2, in fp32. With RoPE a tile is loaded by its halves, rotated in registers and joined to
[first half | second half], each half padded to a power of two; without, it is loaded as it stands.

The extra tokens are few and see everything, so their products are transposed, Sᵀ = K·Qᵀ and Oᵀ = Vᵀ·Pᵀ: wgmma wants
64 rows, and here they are keys and head_dim. Their programs run beside those of the windows and read the same keys and
values, so that one of the two finds them in L2. They come first, because each takes longer.

Floats are constants of the compilation, because Inductor passes them as fp64 otherwise.
"""

from __future__ import annotations

import triton
import triton.language as tl

from jetvit.kernels.triton_index import extra_token, fast_divide, grid_position, reciprocal_of, split_range
from jetvit.kernels.triton_rope import load_rotated, load_rows

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def update_softmax(scores, values, top, total, out, SCALE: tl.constexpr, PRECISION: tl.constexpr):
    """Add scores [query, key] and values [key, BLOCK_D] to the maximum, the sum and the output of an online softmax.

    SCALE: of the scores, to the base 2. top: the largest score so far, times SCALE.
    """
    new_top = tl.maximum(top, tl.max(scores, 1) * SCALE)
    weights = tl.exp2(scores * SCALE - new_top[:, None])
    decay = tl.exp2(top - new_top)
    total = total * decay + tl.sum(weights, 1)  # ahead of the product, beside which fp32 weights would need registers
    product = tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    # A fused multiply-add, because Triton folds a sum into the product, and then it runs on into the next step, where
    # the compiler cannot load the queries beside it and has to wait after every instruction.
    out = tl.fma(out, tl.broadcast_to(decay[:, None], out.shape), product)
    return new_top, total, out


@triton.jit
def window_position(i, width, reciprocal, SIDE_W: tl.constexpr):
    """Return row and column of the i-th token (int32 ≥ 0) of a window of `width` columns: SIDE_W, unless that is 0."""
    if SIDE_W > 0:
        y = (i.to(tl.uint32) // SIDE_W).to(tl.int32)
        x = i % SIDE_W
    else:
        y = fast_divide(i, width, reciprocal)
        x = i - y * width
    return y, x


@triton.jit
def attend_window(
    q_ptr, k_ptr, v_ptr, rope_y_ptr, rope_x_ptr, out_ptr, stride_qn, stride_kn, stride_vn, stride_on,
    window, block, tokens, grid_h, grid_w, extra_before, count_w, side_h, side_w,
    HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROPE: tl.constexpr, SHRINK: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr, SIDE_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Attend from BLOCK_M tokens of one window of one head: those of the block of that number."""
    TO_BASE_2: tl.constexpr = SCALE * LOG2_E / (SHRINK * SHRINK)
    top_row = window // count_w * side_h
    left_column = window % count_w * side_w
    width = tl.minimum(side_w, grid_w - left_column)
    if SIDE_W > 0:
        width = SIDE_W
    size = tl.minimum(side_h, grid_h - top_row) * width
    reciprocal = reciprocal_of(width)
    corner = extra_before + top_row * grid_w + left_column

    i = block * BLOCK_M + tl.arange(0, BLOCK_M)
    query_y, query_x = window_position(i, width, reciprocal, SIDE_W)
    query = corner + query_y * grid_w + query_x
    queries = load_rotated(
        q_ptr, query.to(tl.int64) * stride_qn, i < size, rope_y_ptr, rope_x_ptr, top_row + query_y,
        left_column + query_x, i < size, HEAD_DIM, HALF_D, BLOCK_D, ROPE, SHRINK,
    )  # fmt: skip
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    extra = tokens - grid_h * grid_w
    full = size - size % BLOCK_N
    rest = extra + size - full
    for start in range(0, rest, BLOCK_R):
        e = start + tl.arange(0, BLOCK_R)
        rest_y, rest_x = window_position(tl.maximum(e - extra + full, 0), width, reciprocal, SIDE_W)
        token = tl.where(
            e < extra, extra_token(e, extra_before, grid_h * grid_w), corner + rest_y * grid_w + rest_x
        ).to(tl.int64)
        keys = load_rotated(
            k_ptr, token * stride_kn, e < rest, rope_y_ptr, rope_x_ptr, top_row + rest_y, left_column + rest_x,
            e >= extra, HEAD_DIM, HALF_D, BLOCK_D, ROPE, SHRINK,
        )  # fmt: skip
        values = load_rows(v_ptr, token * stride_vn, e < rest, HEAD_DIM, BLOCK_D)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        scores = tl.where((e < rest)[None, :], scores, float("-inf"))
        top, total, result = update_softmax(scores, values, top, total, result, TO_BASE_2, PRECISION)
    n = tl.arange(0, BLOCK_N)
    always = tl.full([BLOCK_N], True, tl.int1)
    for start in range(0, full, BLOCK_N):
        # With SIDE_W a block is whole rows: all but the first row's position is the same in each step.
        first_row = start // SIDE_W if SIDE_W > 0 else 0
        key_y, key_x = window_position(n if SIDE_W > 0 else start + n, width, reciprocal, SIDE_W)
        place = tl.cast(corner + first_row * grid_w, tl.int64)
        offset = (key_y * grid_w + key_x).to(tl.int64)
        full_keys = load_rotated(
            k_ptr + place * stride_kn, offset * stride_kn, always, rope_y_ptr, rope_x_ptr,
            top_row + first_row + key_y, left_column + key_x, always, HEAD_DIM, HALF_D, BLOCK_D, ROPE, SHRINK,
        )  # fmt: skip
        full_values = load_rows(v_ptr + place * stride_vn, offset * stride_vn, always, HEAD_DIM, BLOCK_D)
        full_scores = tl.dot(queries, tl.trans(full_keys), input_precision=PRECISION)
        top, total, result = update_softmax(full_scores, full_values, top, total, result, TO_BASE_2, PRECISION)
    result = result * (1.0 / total)[:, None]
    d = tl.arange(0, BLOCK_D)
    place = out_ptr + (query.to(tl.int64) * stride_on)[:, None] + d[None, :]
    tl.store(place, result.to(out_ptr.dtype.element_ty), mask=(i < size)[:, None] & (d < HEAD_DIM)[None, :])


@triton.jit
def attend_extra(
    q_ptr, k_ptr, v_ptr, rope_y_ptr, rope_x_ptr, partials_ptr, stride_qn, stride_kn, stride_vn,
    group, first, last, tokens, grid_h, grid_w, extra_before,
    HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROPE: tl.constexpr, SHRINK: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attend from a group of BLOCK_E extra tokens of one head to the keys from token `first` to the one before `last`.

    partials: fp32 [extra token, head_dim + 2]: the output not yet divided by the sum, the largest score to the base 2,
    and the sum.
    """
    TO_BASE_2: tl.constexpr = SCALE * LOG2_E / (SHRINK * SHRINK)
    extra = tokens - grid_h * grid_w
    e = group * BLOCK_E + tl.arange(0, BLOCK_E)
    query = extra_token(e, extra_before, grid_h * grid_w)
    # Extra tokens are not rotated; their halves lie as those of the keys.
    queries = load_rotated(
        q_ptr, query.to(tl.int64) * stride_qn, e < extra, rope_y_ptr, rope_x_ptr, e, e, e < 0,
        HEAD_DIM, HALF_D, BLOCK_D, ROPE, SHRINK,
    )  # fmt: skip
    top = tl.full([BLOCK_E], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)  # added up over the keys of a block once, at the end
    result = tl.zeros([BLOCK_D, BLOCK_E], tl.float32)
    reciprocal = reciprocal_of(grid_w)
    for start in range(first, last, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        y, x, on_grid = grid_position(key, extra_before, grid_h, grid_w, reciprocal)
        keys = load_rotated(
            k_ptr, key.to(tl.int64) * stride_kn, key < last, rope_y_ptr, rope_x_ptr, y, x, on_grid,
            HEAD_DIM, HALF_D, BLOCK_D, ROPE, SHRINK,
        )  # fmt: skip
        values = load_rows(v_ptr, key.to(tl.int64) * stride_vn, key < last, HEAD_DIM, BLOCK_D)
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
        scores = tl.where((key < last)[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 0) * TO_BASE_2)
        weights = tl.exp2(scores * TO_BASE_2 - new_top[None, :])
        decay = tl.exp2(top - new_top)
        total = total * decay[None, :] + weights
        product = tl.dot(tl.trans(values), weights.to(values.dtype), input_precision=PRECISION)
        result = tl.fma(result, tl.broadcast_to(decay[None, :], result.shape), product)
        top = new_top
    d = tl.arange(0, BLOCK_D)
    row = partials_ptr + e * (HEAD_DIM + 2)
    tl.store(row[None, :] + d[:, None], result, mask=(d < HEAD_DIM)[:, None] & (e < extra)[None, :])
    tl.store(row + HEAD_DIM, top, mask=e < extra)
    tl.store(row + HEAD_DIM + 1, tl.sum(total, 0), mask=e < extra)


@triton.jit(
    do_not_specialize=[
        "batch", "heads", "tokens", "grid_h", "grid_w", "extra_before", "count_w", "side_h", "side_w", "blocks",
        "splits", "groups",
    ]
)  # fmt: skip
def attend_windows(
    q_ptr, k_ptr, v_ptr, rope_y_ptr, rope_x_ptr, out_ptr, partials_ptr,
    stride_qb, stride_qn, stride_qh, stride_kb, stride_kn, stride_kh, stride_vb, stride_vn, stride_vh,
    batch, heads, tokens, grid_h, grid_w, extra_before, count_w, side_h, side_w, blocks, splits, groups,
    HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROPE: tl.constexpr, SHRINK: tl.constexpr, SCALE: tl.constexpr, PRECISION: tl.constexpr,
    SIDE_W: tl.constexpr, EXTRA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_EN: tl.constexpr,
):  # fmt: skip
    """Attend from one group of extra tokens to one split of the tokens, or from one block of one window to its keys.

    The first splits · groups programs of each head are the extra tokens', if EXTRA. The others: `blocks` programs share
    a window of side_h × side_w tokens. SIDE_W: the width of all windows, a power of two, or 0.
    partials: fp32 [split, batch, head, extra token, head_dim + 2], as `attend_extra` has them.
    """
    head = (tl.program_id(0) % heads).to(tl.int64)
    image = (tl.program_id(0) // heads % batch).to(tl.int64)
    part = tl.program_id(0) // heads // batch
    q_ptr += image * stride_qb + head * stride_qh
    k_ptr += image * stride_kb + head * stride_kh
    v_ptr += image * stride_vb + head * stride_vh
    out_ptr += (image * tokens * heads + head) * HEAD_DIM
    if EXTRA:
        if part < splits * groups:
            split = part // groups
            first, last = split_range(split, splits, tokens, BLOCK_EN)
            row = ((split * batch + image) * heads + head) * (tokens - grid_h * grid_w)
            attend_extra(
                q_ptr, k_ptr, v_ptr, rope_y_ptr, rope_x_ptr, partials_ptr + row * (HEAD_DIM + 2),
                stride_qn, stride_kn, stride_vn, part % groups, first, last, tokens, grid_h, grid_w, extra_before,
                HEAD_DIM, HALF_D, BLOCK_D, ROPE, SHRINK, SCALE, PRECISION, BLOCK_E, BLOCK_EN,
            )  # fmt: skip
        part -= splits * groups
    if part >= 0:
        attend_window(
            q_ptr, k_ptr, v_ptr, rope_y_ptr, rope_x_ptr, out_ptr, stride_qn, stride_kn, stride_vn, heads * HEAD_DIM,
            part // blocks, part % blocks, tokens, grid_h, grid_w, extra_before, count_w, side_h, side_w,
            HEAD_DIM, HALF_D, BLOCK_D, ROPE, SHRINK, SCALE, PRECISION, SIDE_W, BLOCK_M, BLOCK_N, BLOCK_R,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "heads", "tokens", "extra", "extra_before", "splits"])
def combine_extra(
    partials_ptr, out_ptr,
    rows, heads, tokens, extra, extra_before, splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Add up one extra token of one head, split by split. rows: batch · head · extra token."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    top = float("-inf")
    total = 0.0
    result = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        part = partials_ptr + (split * rows + row) * (HEAD_DIM + 2)
        tops = tl.load(part + HEAD_DIM, mask=split < splits, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(tops, 0))
        decay = tl.exp2(top - new_top)
        weights = tl.exp2(tops - new_top)
        sums = tl.load(part + HEAD_DIM + 1, mask=split < splits, other=0.0)
        inside = (split < splits)[:, None] & (d < HEAD_DIM)[None, :]
        results = tl.load(part[:, None] + d[None, :], mask=inside, other=0.0)
        total = total * decay + tl.sum(sums * weights, 0)
        result = result * decay + tl.sum(results * weights[:, None], 0)
        top = new_top
    e = (row % extra).to(tl.int32)
    token = extra_token(e, extra_before, tokens - extra)
    batch_head = row // extra
    image, head = batch_head // heads, batch_head % heads
    place = ((image * tokens + token) * heads + head) * HEAD_DIM
    tl.store(out_ptr + place + d, (result / total).to(out_ptr.dtype.element_ty), mask=d < HEAD_DIM)
