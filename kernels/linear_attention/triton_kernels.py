"""The Triton kernels of linear attention.

    kv_partials      k, v         → for each split of the tokens: vᵀ·f(k), Σ f(k) and, for the generator, Σ v
    kv_state         the partials → the state: per head Σ f(k) and the mean of v weighted by each feature of k;
                     beside it, in other programs, the mean of v → the generator's hidden units
    generate_taps    the hidden units → the taps of the depthwise convolution
    mix              q, v, state, taps → the output

Two numbers have another form here than in the reference. The state is divided by Σ f(k), and q is multiplied by it:
p_i = f(q_i)·Σ f(k_i) / (den + eps) are weights that add up to one, and out = Σ p_i · (mean of v weighted by feature i
of k). So both factors of the last product stay within the range of p ≤ 1 and of v in 16 bits, for any number of tokens
and any size of k. The sums run in a fixed order, without atomics: the result is the same in every run with one
configuration. (A ticket that lets the last split of a head add up the partials would save a launch, but its counters
have to be zeroed by a launch of their own.)

fp32 products are three of tf32 each: near fp32's accuracy on tensor cores, where fused multiply-adds would spill.
What depends on the image size or the batch is never specialised, so that no new size compiles a kernel anew. Floats are
constants of the compilation, because Inductor passes them as fp64 otherwise.
"""

from __future__ import annotations

import triton
import triton.language as tl

from jetvit.kernels.triton_index import extra_token, grid_position, reciprocal_of, split_range
from jetvit.kernels.triton_rope import join_halves, load_rotated_halves, load_rows


@triton.jit
def relu(x):
    """max(x, 0) that keeps NaN, as ReLU does."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def feature_of(column, HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr):
    """Return the feature that a column of `join_halves` holds, and whether it holds one."""
    j = column % HALF_D
    return tl.where(column < HALF_D, j, j + HEAD_DIM // 2), j < HEAD_DIM // 2


@triton.jit(do_not_specialize=["batch_heads", "tokens", "splits", "grid_h", "grid_w", "extra_before"])
def kv_partials(
    k_ptr, v_ptr, rope_y_ptr, rope_x_ptr, partials_ptr,
    stride_kb, stride_kn, stride_kh, stride_vb, stride_vn, stride_vh,
    batch_heads, heads, tokens, splits, grid_h, grid_w, extra_before,
    HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROPE: tl.constexpr, MEAN: tl.constexpr, SHRINK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum up one split of one head. partials: fp32 [split, batch·head, head_dim·head_dim + 2·head_dim]."""
    split = tl.program_id(0) // batch_heads
    batch_head = tl.program_id(0) % batch_heads
    batch, head = (batch_head // heads).to(tl.int64), (batch_head % heads).to(tl.int64)
    first, last = split_range(split, splits, tokens, BLOCK_N)
    k_ptr += batch * stride_kb + head * stride_kh + first.to(tl.int64) * stride_kn
    v_ptr += batch * stride_vb + head * stride_vh + first.to(tl.int64) * stride_vn
    dtype: tl.constexpr = k_ptr.dtype.element_ty
    kv = tl.zeros([BLOCK_D, 2 * HALF_D], tl.float32)
    # Σ v, and in 16 bits Σ f(k), come from the tensor cores, too: as products with ones, of which all rows or columns
    # are the same. wgmma wants 64 rows; in fp32 even 16 would spill.
    ROWS: tl.constexpr = 1 if dtype == tl.float32 else 64
    k_sum = tl.zeros([ROWS, 2 * HALF_D], tl.float32)
    v_sum = tl.zeros([BLOCK_D, 16], tl.float32)
    ones = tl.full([ROWS, BLOCK_N], 1.0, dtype)
    n = tl.arange(0, BLOCK_N)
    k_offset, v_offset = n.to(tl.int64) * stride_kn, n.to(tl.int64) * stride_vn
    reciprocal = reciprocal_of(grid_w)
    for start in range(first, last, BLOCK_N):
        token = start + n
        valid = token < last
        y, x, on_grid = grid_position(token, extra_before, grid_h, grid_w, reciprocal)
        k_first, k_second = load_rotated_halves(
            k_ptr, k_offset, valid, rope_y_ptr, rope_x_ptr, y, x, on_grid, HEAD_DIM, HALF_D, ROPE
        )
        keys = join_halves((relu(k_first) * SHRINK).to(dtype), (relu(k_second) * SHRINK).to(dtype))
        # vᵀk and not kᵀv: its rows are head_dim, and wgmma wants 64 of them.
        values = tl.trans(load_rows(v_ptr, v_offset, valid, HEAD_DIM, BLOCK_D))
        kv = tl.dot(values, keys, kv, input_precision="tf32x3")
        if dtype == tl.float32:
            k_sum += tl.sum(keys, 0)[None, :]
        else:
            k_sum = tl.dot(ones, keys, k_sum)
        if MEAN:
            member = tl.broadcast_to(on_grid[:, None], [BLOCK_N, 16]).to(dtype)
            v_sum = tl.dot(values, member, v_sum, input_precision="tf32x3")
        k_ptr += tl.cast(stride_kn, tl.int64) * BLOCK_N
        v_ptr += tl.cast(stride_vn, tl.int64) * BLOCK_N
    partials_ptr += (split.to(tl.int64) * batch_heads + batch_head) * (HEAD_DIM * HEAD_DIM + 2 * HEAD_DIM)
    d = tl.arange(0, BLOCK_D)
    feature, is_feature = feature_of(tl.arange(0, 2 * HALF_D), HEAD_DIM, HALF_D)
    inside = (d < HEAD_DIM)[:, None] & is_feature[None, :]
    tl.store(partials_ptr + d[:, None] * HEAD_DIM + feature[None, :], kv / SHRINK, mask=inside)
    partials_ptr += HEAD_DIM * HEAD_DIM
    tl.store(partials_ptr + feature, tl.max(k_sum, 0) / SHRINK, mask=is_feature)
    if MEAN:
        tl.store(partials_ptr + HEAD_DIM + d, tl.max(v_sum, 1), mask=d < HEAD_DIM)


@triton.jit
def sum_of_splits(ptr, splits, step, offset, valid, BLOCK_S: tl.constexpr):
    """Add up fp32 tensors [entry] at ptr + offset, one a split, `step` elements apart."""
    total = tl.zeros([offset.shape[0]], tl.float32)
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        place = (split.to(tl.int64) * step)[:, None] + offset[None, :]
        total += tl.sum(tl.load(ptr + place, mask=(split < splits)[:, None] & valid[None, :], other=0.0), 0)
    return total


@triton.jit
def store_state(
    partials_ptr, state_ptr, key_sums_ptr, batch_head, block, batch_heads, splits,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr, STATE_ROWS: tl.constexpr,
):  # fmt: skip
    """Add up STATE_ROWS rows of one head's state, split by split, and divide them by Σ f(k)."""
    size = HEAD_DIM * HEAD_DIM + 2 * HEAD_DIM
    step = tl.cast(batch_heads, tl.int64) * size
    partials_ptr += batch_head.to(tl.int64) * size
    # Flat, so that one load has all rows of all splits.
    entry = tl.arange(0, STATE_ROWS * BLOCK_D)
    row, d = block * STATE_ROWS + entry // BLOCK_D, entry % BLOCK_D
    inside = (row < HEAD_DIM) & (d < HEAD_DIM)
    kv = sum_of_splits(partials_ptr, splits, step, row * HEAD_DIM + d, inside, BLOCK_S)
    k_sum = sum_of_splits(partials_ptr + HEAD_DIM * HEAD_DIM, splits, step, d, inside, BLOCK_S)
    # A feature that no token has takes no part: its weight in every query is zero as well.
    averages = tl.where(k_sum == 0, 0.0, kv / tl.where(k_sum == 0, 1.0, k_sum))
    base = batch_head.to(tl.int64) * HEAD_DIM
    tl.store(state_ptr + (base + row) * HEAD_DIM + d, averages.to(state_ptr.dtype.element_ty), mask=inside)
    tl.store(key_sums_ptr + base + d, k_sum, mask=inside & (row == 0))


@triton.jit
def store_hidden(
    partials_ptr, w1_ptr, b1_ptr, hidden_ptr, image, block, batch_heads, heads, splits, units, grid_tokens,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, HIDDEN_ROWS: tl.constexpr,
):  # fmt: skip
    """HIDDEN_ROWS hidden units of one image: SiLU(W1·(mean of v) + b1), the mean added up split by split."""
    size = HEAD_DIM * HEAD_DIM + 2 * HEAD_DIM
    step = tl.cast(batch_heads, tl.int64) * size
    partials_ptr += tl.cast(image * heads, tl.int64) * size + HEAD_DIM * HEAD_DIM + HEAD_DIM
    channels = heads * HEAD_DIM
    unit = block * HIDDEN_ROWS + tl.arange(0, HIDDEN_ROWS)
    total = tl.zeros([HIDDEN_ROWS, BLOCK_C], tl.float32)
    for start in range(0, channels, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        valid = channel < channels
        v_sum = sum_of_splits(
            partials_ptr, splits, step, channel // HEAD_DIM * size + channel % HEAD_DIM, valid, BLOCK_S
        )
        place = w1_ptr + unit.to(tl.int64)[:, None] * channels + channel[None, :]
        weight = tl.load(place, mask=(unit < units)[:, None] & valid[None, :], other=0.0).to(tl.float32)
        total += weight * v_sum[None, :]
    bias = tl.load(b1_ptr + unit, mask=unit < units, other=0.0).to(tl.float32)
    result = tl.sum(total, 1) / grid_tokens + bias
    tl.store(hidden_ptr + tl.cast(image, tl.int64) * units + unit, result * tl.sigmoid(result), mask=unit < units)


@triton.jit(do_not_specialize=["batch_heads", "splits", "state_programs", "grid_tokens"])
def kv_state(
    partials_ptr, state_ptr, key_sums_ptr, w1_ptr, b1_ptr, hidden_ptr,
    batch_heads, heads, splits, state_programs, units, grid_tokens,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MEAN: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, STATE_ROWS: tl.constexpr, HIDDEN_ROWS: tl.constexpr,
):  # fmt: skip
    """Make the state in the first `state_programs` programs, the generator's hidden units in the others.

    state: [batch·head, head_dim of v, head_dim of k] in k's dtype. key_sums: fp32 [batch·head, head_dim].
    hidden: fp32 [batch, unit].
    """
    program = tl.program_id(0)
    if program < state_programs:
        batch_head, block = program % batch_heads, program // batch_heads
        store_state(
            partials_ptr, state_ptr, key_sums_ptr, batch_head, block, batch_heads, splits,
            HEAD_DIM, BLOCK_D, BLOCK_S, STATE_ROWS,
        )  # fmt: skip
    elif MEAN:
        images = batch_heads // heads
        image, block = (program - state_programs) % images, (program - state_programs) // images
        store_hidden(
            partials_ptr, w1_ptr, b1_ptr, hidden_ptr, image, block, batch_heads, heads, splits, units, grid_tokens,
            HEAD_DIM, BLOCK_S, BLOCK_C, HIDDEN_ROWS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["batch"])
def generate_taps(
    hidden_ptr, w2_ptr, b2_ptr, taps_ptr,
    batch, channels, units,
    TAPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """taps[image, tap, channel] = W2·hidden + b2, fp32, for ROWS rows of w2 [channel·TAPS, unit]."""
    image = (tl.program_id(0) % batch).to(tl.int64)
    row = tl.program_id(0) // batch * ROWS + tl.arange(0, ROWS)
    rows = channels * TAPS
    total = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for start in range(0, units, BLOCK_C):
        unit = start + tl.arange(0, BLOCK_C)
        place = w2_ptr + row.to(tl.int64)[:, None] * units + unit[None, :]
        weight = tl.load(place, mask=(row < rows)[:, None] & (unit < units)[None, :], other=0.0).to(tl.float32)
        total += weight * tl.load(hidden_ptr + image * units + unit, mask=unit < units, other=0.0)[None, :]
    result = tl.sum(total, 1) + tl.load(b2_ptr + row, mask=row < rows, other=0.0).to(tl.float32)
    # Tap by tap, so that `mix` loads neighbouring channels by 16 bytes.
    tl.store(taps_ptr + image * rows + row % TAPS * channels + row // TAPS, result, mask=row < rows)


@triton.jit
def load_state(
    state_ptr, key_sums_ptr, batch_head, HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Load one head's state, both halves [feature of k, head_dim of v], and the halves of Σ f(k), fp32 [feature]."""
    j, d = tl.arange(0, HALF_D), tl.arange(0, BLOCK_D)
    is_feature = j < HEAD_DIM // 2
    inside = is_feature[:, None] & (d < HEAD_DIM)[None, :]
    base = batch_head.to(tl.int64) * HEAD_DIM
    place = state_ptr + (base + d)[None, :] * HEAD_DIM + j[:, None]
    state_first = tl.load(place, mask=inside, other=0.0)
    state_second = tl.load(place + HEAD_DIM // 2, mask=inside, other=0.0)
    sums_first = tl.load(key_sums_ptr + base + j, mask=is_feature, other=0.0)
    sums_second = tl.load(key_sums_ptr + base + j + HEAD_DIM // 2, mask=is_feature, other=0.0)
    return state_first, state_second, sums_first, sums_second


@triton.jit
def attend(
    q_ptr, stride_qn, token, valid, rope_y_ptr, rope_x_ptr, y, x, rotated, state,
    HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, ROPE: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Linear attention of some tokens, fp32 [token, BLOCK_D]. state: what `load_state` returns."""
    state_first, state_second, sums_first, sums_second = state
    first, second = load_rotated_halves(
        q_ptr, token.to(tl.int64) * stride_qn, valid, rope_y_ptr, rope_x_ptr, y, x, rotated, HEAD_DIM, HALF_D, ROPE
    )
    first, second = relu(first) * sums_first[None, :], relu(second) * sums_second[None, :]
    scale = (1.0 / (tl.sum(first + second, 1) + EPS))[:, None]
    first, second = (first * scale).to(state_first.dtype), (second * scale).to(state_first.dtype)
    # Two products: joined, the halves would take a detour through shared memory.
    result = tl.dot(first, state_first, input_precision="tf32x3")
    return tl.dot(second, state_second, result, input_precision="tf32x3")


@triton.jit
def add_column(
    sums, v_ptr, stride_vn, x, dx, grid_w, valid, taps_ptr, channels,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CONV: tl.constexpr,
):  # fmt: skip
    """Add what `add_row` adds of the columns dx - CONV // 2 to the right of x."""
    d = tl.arange(0, BLOCK_D)
    near = x + (dx - CONV // 2)
    # Masked by column: what is past the end of a row is not the start of the next one.
    inside = (near >= 0) & (near < grid_w) & valid
    values = load_rows(v_ptr, near.to(tl.int64) * stride_vn, inside, HEAD_DIM, BLOCK_D).to(tl.float32)
    added = ()
    for i in tl.static_range(CONV):
        place = taps_ptr + ((CONV - 1 - i) * CONV + dx) * channels + d
        tap = tl.load(place, mask=d < HEAD_DIM, other=0.0).to(tl.float32)
        added += (sums[i] + values * tap[None, :],)  # type: ignore[assignment]
    return added


@triton.jit
def add_row(
    sums, v_ptr, stride_vn, x, grid_w, valid, taps_ptr, channels,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CONV: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Add one row of v, times its taps, to the sums of the CONV output rows that it reaches.

    sums: a tuple of CONV fp32 [column, BLOCK_D], the output rows from CONV // 2 above to CONV // 2 below. v_ptr: of the
    row's first column. x: int32 [column]. valid: whether the row is on the grid. taps: [tap, channel]. UNROLL: load
    all columns at once, which takes more registers and fewer instructions.
    """
    if UNROLL:
        for dx in tl.static_range(CONV):
            sums = add_column(sums, v_ptr, stride_vn, x, dx, grid_w, valid, taps_ptr, channels, HEAD_DIM, BLOCK_D, CONV)
    else:
        for dx in tl.range(0, CONV, loop_unroll_factor=1):
            sums = add_column(sums, v_ptr, stride_vn, x, dx, grid_w, valid, taps_ptr, channels, HEAD_DIM, BLOCK_D, CONV)
    return sums


@triton.jit
def next_row(sums, CONV: tl.constexpr):
    """Drop the first of the CONV sums, which is complete, and append zeros."""
    shifted = ()
    for i in tl.static_range(1, CONV):
        shifted += (sums[i],)  # type: ignore[assignment]
    shifted += (tl.zeros(sums[0].shape, tl.float32),)  # type: ignore[assignment]
    return shifted


@triton.jit
def mix_tokens(
    q_ptr, rope_y_ptr, rope_x_ptr, out_ptr, state, stride_qn, stride_on,
    first, last, grid_h, grid_w, extra_before,
    HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, BLOCK_D: tl.constexpr,
    EXTRA: tl.constexpr, ROPE: tl.constexpr, EPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attend from token `first` to the one before `last`, all tokens counted, or the extra tokens alone if EXTRA."""
    d = tl.arange(0, BLOCK_D)
    reciprocal = reciprocal_of(grid_w)
    for start in range(first, last, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        valid = token < last
        if EXTRA:
            token = extra_token(token, extra_before, grid_h * grid_w)
        y, x, on_grid = grid_position(token, extra_before, grid_h, grid_w, reciprocal)
        result = attend(
            q_ptr, stride_qn, token, valid, rope_y_ptr, rope_x_ptr, y, x, on_grid, state,
            HEAD_DIM, HALF_D, ROPE, EPS,
        )  # fmt: skip
        place = out_ptr + (token.to(tl.int64) * stride_on)[:, None] + d[None, :]
        tl.store(place, result.to(out_ptr.dtype.element_ty), mask=valid[:, None] & (d < HEAD_DIM)[None, :])


@triton.jit
def mix_rows(
    q_ptr, v_ptr, rope_y_ptr, rope_x_ptr, taps_ptr, out_ptr, state, stride_qn, stride_vn, stride_on,
    left, top, bottom, grid_h, grid_w, extra_before,
    HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROPE: tl.constexpr, CONV: tl.constexpr, EPS: tl.constexpr, BLOCK_W: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Attend and convolve BLOCK_W columns of the grid from row `top` to the one before `bottom`.

    Rows of v are streamed: each is loaded once for its CONV columns, and added to the CONV output rows that it reaches.
    """
    d = tl.arange(0, BLOCK_D)
    x = left + tl.arange(0, BLOCK_W)
    valid = x < grid_w
    sums = (tl.zeros([BLOCK_W, BLOCK_D], tl.float32),) * CONV
    for row in range(top - CONV // 2, bottom + CONV // 2):
        sums = add_row(
            sums, v_ptr + tl.cast(extra_before + row * grid_w, tl.int64) * stride_vn, stride_vn, x, grid_w,
            (row >= 0) & (row < grid_h), taps_ptr, stride_on, HEAD_DIM, BLOCK_D, CONV, UNROLL,
        )  # fmt: skip
        y = row - CONV // 2
        if y >= top:
            token = extra_before + y * grid_w + x
            result = attend(
                q_ptr, stride_qn, token, valid, rope_y_ptr, rope_x_ptr, y + x * 0, x, valid, state,
                HEAD_DIM, HALF_D, ROPE, EPS,
            )  # fmt: skip
            place = out_ptr + (token.to(tl.int64) * stride_on)[:, None] + d[None, :]
            result = (result + sums[0]).to(out_ptr.dtype.element_ty)
            tl.store(place, result, mask=valid[:, None] & (d < HEAD_DIM)[None, :])
        sums = next_row(sums, CONV)


@triton.jit(
    do_not_specialize=["batch_heads", "tokens", "grid_h", "grid_w", "extra_before", "tiles_w", "rows", "extra_tiles"]
)
def mix(
    q_ptr, v_ptr, rope_y_ptr, rope_x_ptr, state_ptr, key_sums_ptr, taps_ptr, out_ptr,
    stride_qb, stride_qn, stride_qh, stride_vb, stride_vn, stride_vh, stride_tb,
    batch_heads, heads, tokens, grid_h, grid_w, extra_before, tiles_w, rows, extra_tiles,
    HEAD_DIM: tl.constexpr, HALF_D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROPE: tl.constexpr, CONV: tl.constexpr, EPS: tl.constexpr,
    BLOCK_W: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Write one tile of one head of the output.

    With a convolution the first `extra_tiles` tiles are ROWS·BLOCK_W extra tokens, and the others BLOCK_W columns and
    `rows` (at most ROWS) rows of the grid; without, all tiles are ROWS·BLOCK_W tokens of any kind.

    taps: [batch, CONV·CONV, head·head_dim]; stride_tb is 0 where all images share them.
    """
    tile = tl.program_id(0) // batch_heads
    batch_head = tl.program_id(0) % batch_heads
    batch, head = (batch_head // heads).to(tl.int64), (batch_head % heads).to(tl.int64)
    q_ptr += batch * stride_qb + head * stride_qh
    v_ptr += batch * stride_vb + head * stride_vh
    out_ptr += (batch * tokens * heads + head) * HEAD_DIM
    stride_on = heads * HEAD_DIM
    state = load_state(state_ptr, key_sums_ptr, batch_head, HEAD_DIM, HALF_D, BLOCK_D)
    first = tile * (ROWS * BLOCK_W)
    if CONV == 0:
        mix_tokens(
            q_ptr, rope_y_ptr, rope_x_ptr, out_ptr, state, stride_qn, stride_on,
            first, tl.minimum(first + ROWS * BLOCK_W, tokens), grid_h, grid_w, extra_before,
            HEAD_DIM, HALF_D, BLOCK_D, False, ROPE, EPS, BLOCK_W,
        )  # fmt: skip
    elif tile < extra_tiles:
        mix_tokens(
            q_ptr, rope_y_ptr, rope_x_ptr, out_ptr, state, stride_qn, stride_on,
            first, tl.minimum(first + ROWS * BLOCK_W, tokens - grid_h * grid_w), grid_h, grid_w, extra_before,
            HEAD_DIM, HALF_D, BLOCK_D, True, False, EPS, BLOCK_W,
        )  # fmt: skip
    else:
        left = (tile - extra_tiles) % tiles_w * BLOCK_W
        top = (tile - extra_tiles) // tiles_w * rows
        mix_rows(
            q_ptr, v_ptr, rope_y_ptr, rope_x_ptr, taps_ptr + batch * stride_tb + head * HEAD_DIM, out_ptr, state,
            stride_qn, stride_vn, stride_on, left, top, tl.minimum(top + rows, grid_h), grid_h, grid_w, extra_before,
            HEAD_DIM, HALF_D, BLOCK_D, ROPE, CONV, EPS, BLOCK_W, UNROLL,
        )  # fmt: skip
