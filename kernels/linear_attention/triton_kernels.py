"""The Triton kernels of linear attention.

    kv_partials   k, v         → for each split of the tokens: vᵀ·f(k), Σ f(k) and, for the generator, Σ v
    kv_state      the partials → the state: per head Σ f(k) and the mean of v weighted by each feature of k
    matvec        the mean of v → hidden units → the taps of the depthwise convolution (the generator, two launches)
    mix           q, v, state, taps → the output

Two numbers are in another form here than in the reference. The state is divided by Σ f(k), and q is multiplied by it:
p_i = f(q_i)·Σ f(k_i) / (den + eps) are weights that add up to one, and out = Σ p_i · (mean of v weighted by feature i
of k). So both factors of the last product stay within the range of p ≤ 1 and of v in 16 bits, for any number of tokens
and any size of k. And the sums run in a fixed order: the result is the same in every run with one configuration.

fp32 products are three of tf32 each: near fp32's accuracy on tensor cores, where fused multiply-adds would spill.
What depends on the image size or the batch is never specialised, so that no new size compiles a kernel anew.
"""

from __future__ import annotations

import triton
import triton.language as tl

from jetvit.kernels.triton_rope import load_halves


@triton.jit(do_not_specialize=["batch_heads", "tokens", "chunk", "grid_w", "grid_tokens", "extra_before"])
def kv_partials(
    k, v, rope_y, rope_x, partials,
    k_batch, k_token, k_head, v_batch, v_token, v_head,
    batch_heads, heads, tokens, chunk, grid_w, grid_tokens, extra_before,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, VALUE: tl.constexpr,
    ROPE: tl.constexpr, MEAN: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """One split of one head. partials: fp32 [split, batch·head, head_dim·head_dim + 2·head_dim]."""
    split = tl.program_id(0) // batch_heads
    batch_head = tl.program_id(0) % batch_heads
    batch, head = (batch_head // heads).to(tl.int64), (batch_head % heads).to(tl.int64)
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    d = tl.arange(0, VALUE)
    kv_first = tl.zeros([VALUE, HALF], tl.float32)
    kv_second = tl.zeros([VALUE, HALF], tl.float32)
    # Summed entry by entry over the blocks and across tokens once at the end: one reduction instead of one a block.
    k_first = tl.zeros([TOKENS, HALF], tl.float32)
    k_second = tl.zeros([TOKENS, HALF], tl.float32)
    v_sum = tl.zeros([TOKENS, VALUE], tl.float32)
    first_token = split * chunk
    last_token = tl.minimum(first_token + chunk, tokens)
    SHRINK: tl.constexpr = 0.5 if ROPE else 1.0
    for start in range(first_token, last_token, TOKENS):
        token = start + tl.arange(0, TOKENS)
        valid = token < last_token
        place = token - extra_before
        on_grid = (place >= 0) & (place < grid_tokens)
        first, second = load_halves(
            k, token.to(tl.int64) * k_token, valid, rope_y, rope_x, place // grid_w, place % grid_w, on_grid,
            HEAD_DIM, HALF, ROPE,
        )  # fmt: skip
        values = tl.load(
            v + token.to(tl.int64)[:, None] * v_token + d[None, :],
            mask=valid[:, None] & (d < HEAD_DIM)[None, :],
            other=0.0,
        )
        # Unlike a maximum, tl.where lets NaN through. A rotation can make a value √2 times as large.
        first = (tl.where(first < 0, 0.0, first) * SHRINK).to(values.dtype)
        second = (tl.where(second < 0, 0.0, second) * SHRINK).to(values.dtype)
        # vᵀk and not kᵀv: its rows are head_dim, and wgmma wants 64 of them.
        transposed = tl.trans(values)
        kv_first = tl.dot(transposed, first, kv_first, input_precision="tf32x3")
        kv_second = tl.dot(transposed, second, kv_second, input_precision="tf32x3")
        k_first += first.to(tl.float32)
        k_second += second.to(tl.float32)
        if MEAN:
            v_sum += tl.where(on_grid[:, None], values.to(tl.float32), 0.0)
    partials += (split.to(tl.int64) * batch_heads + batch_head) * (HEAD_DIM * HEAD_DIM + 2 * HEAD_DIM)
    j = tl.arange(0, HALF)
    inside = (d < HEAD_DIM)[:, None] & (j < HEAD_DIM // 2)[None, :]
    rows = partials + d[:, None] * HEAD_DIM + j[None, :]
    tl.store(rows, kv_first / SHRINK, mask=inside)
    tl.store(rows + HEAD_DIM // 2, kv_second / SHRINK, mask=inside)
    sums = partials + HEAD_DIM * HEAD_DIM + j
    tl.store(sums, tl.sum(k_first, 0) / SHRINK, mask=j < HEAD_DIM // 2)
    tl.store(sums + HEAD_DIM // 2, tl.sum(k_second, 0) / SHRINK, mask=j < HEAD_DIM // 2)
    if MEAN:
        tl.store(partials + HEAD_DIM * HEAD_DIM + HEAD_DIM + d, tl.sum(v_sum, 0), mask=d < HEAD_DIM)


@triton.jit(do_not_specialize=["batch_heads", "splits", "grid_tokens"])
def kv_state(
    partials, state, key_sums, value_mean,
    batch_heads, splits, grid_tokens,
    HEAD_DIM: tl.constexpr, VALUE: tl.constexpr, MEAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one head's state, added up split by split.

    state: [batch·head, head_dim of v, head_dim of k] in q's dtype. key_sums, value_mean: fp32 [batch·head, head_dim].
    """
    batch_head = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, VALUE)
    size = HEAD_DIM * HEAD_DIM + 2 * HEAD_DIM
    inside = (row < HEAD_DIM)[:, None] & (d < HEAD_DIM)[None, :]
    kv = tl.zeros([ROWS, VALUE], tl.float32)
    k_sum = tl.zeros([VALUE], tl.float32)
    v_sum = tl.zeros([ROWS], tl.float32)
    part = partials + batch_head.to(tl.int64) * size
    # A cast and not `.to`: of a scalar that is 1 Inductor makes a constant, which has no methods.
    step = tl.cast(batch_heads, tl.int64) * size
    for _ in range(splits):
        kv += tl.load(part + row[:, None] * HEAD_DIM + d[None, :], mask=inside, other=0.0)
        k_sum += tl.load(part + HEAD_DIM * HEAD_DIM + d, mask=d < HEAD_DIM, other=0.0)
        if MEAN:
            v_sum += tl.load(part + HEAD_DIM * HEAD_DIM + HEAD_DIM + row, mask=row < HEAD_DIM, other=0.0)
        part += step
    # A feature that no token has takes no part: its weight in every query is zero as well.
    averages = tl.where((k_sum == 0)[None, :], 0.0, kv / tl.where(k_sum == 0, 1.0, k_sum)[None, :])
    base = batch_head.to(tl.int64) * HEAD_DIM
    place = state + (base + row)[:, None] * HEAD_DIM + d[None, :]
    tl.store(place, averages.to(state.dtype.element_ty), mask=inside)
    if tl.program_id(1) == 0:
        tl.store(key_sums + base + d, k_sum, mask=d < HEAD_DIM)
    if MEAN:
        tl.store(value_mean + base + row, v_sum / grid_tokens, mask=row < HEAD_DIM)


@triton.jit(do_not_specialize=["batch"])
def matvec(
    x, weight, bias, out,
    batch, rows, columns,
    SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[b] = act(weight · x[b] + bias), fp32; weight [rows, columns], x fp32 [batch, columns], all contiguous."""
    image = (tl.program_id(0) % batch).to(tl.int64)
    row = (tl.program_id(0) // batch).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        w = tl.load(weight + row[:, None] * columns + column[None, :], mask=inside, other=0.0).to(tl.float32)
        total += w * tl.load(x + image * columns + column, mask=column < columns, other=0.0)[None, :]
    result = tl.sum(total, 1) + tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)
    if SILU:
        result = result * tl.sigmoid(result)
    tl.store(out + image * rows + row, result, mask=row < rows)


@triton.jit(
    do_not_specialize=[
        "taps_batch",
        "batch_heads",
        "tokens",
        "grid_h",
        "grid_w",
        "extra_before",
        "tiles_w",
        "grid_tiles",
    ]
)
def mix(
    q, v, rope_y, rope_x, state, key_sums, taps, out,
    q_batch, q_token, q_head, v_batch, v_token, v_head, taps_batch,
    batch_heads, heads, tokens, grid_h, grid_w, extra_before, tiles_w, grid_tiles, eps,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, VALUE: tl.constexpr,
    ROPE: tl.constexpr, CONV: tl.constexpr,
    TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """One tile of one head: TILE_H × TILE_W grid tokens, or, past the last grid tile, as many extra tokens in a row.

    taps: [batch, head·head_dim·CONV·CONV], the convolution; taps_batch is 0 where all images share it.
    """
    tile = tl.program_id(0) // batch_heads
    batch_head = tl.program_id(0) % batch_heads
    batch, head = (batch_head // heads).to(tl.int64), (batch_head % heads).to(tl.int64)
    q += batch * q_batch + head * q_head
    v += batch * v_batch + head * v_head
    index = tl.arange(0, TILE_H * TILE_W)
    y = (tile // tiles_w) * TILE_H + index // TILE_W
    x = (tile % tiles_w) * TILE_W + index % TILE_W
    extra = (tile - grid_tiles) * (TILE_H * TILE_W) + index  # negative in the tiles of the grid
    on_grid = (extra < 0) & (y < grid_h) & (x < grid_w)
    extra = tl.where(extra < extra_before, extra, extra + grid_h * grid_w)
    valid = on_grid | ((extra >= 0) & (extra < tokens))
    token = tl.where(on_grid, extra_before + y * grid_w + x, extra)
    first, second = load_halves(
        q, token.to(tl.int64) * q_token, valid, rope_y, rope_x, y, x, on_grid, HEAD_DIM, HALF, ROPE
    )
    first, second = tl.where(first < 0, 0.0, first), tl.where(second < 0, 0.0, second)
    j = tl.arange(0, HALF)
    d = tl.arange(0, VALUE)
    sums = key_sums + batch_head.to(tl.int64) * HEAD_DIM + j
    first = first * tl.load(sums, mask=j < HEAD_DIM // 2, other=0.0)[None, :]
    second = second * tl.load(sums + HEAD_DIM // 2, mask=j < HEAD_DIM // 2, other=0.0)[None, :]
    den = tl.sum(first, 1) + tl.sum(second, 1) + eps
    first, second = first / den[:, None], second / den[:, None]
    # The state is stored by rows of v; read by its columns it is the right factor [feature of k, head_dim of v].
    columns = state + batch_head.to(tl.int64) * (HEAD_DIM * HEAD_DIM) + d[None, :] * HEAD_DIM + j[:, None]
    inside = (j < HEAD_DIM // 2)[:, None] & (d < HEAD_DIM)[None, :]
    averages = tl.load(columns, mask=inside, other=0.0)
    result = tl.dot(first.to(averages.dtype), averages, input_precision="tf32x3")
    averages = tl.load(columns + HEAD_DIM // 2, mask=inside, other=0.0)
    result = tl.dot(second.to(averages.dtype), averages, result, input_precision="tf32x3")
    if CONV > 0:
        taps += batch * taps_batch + (head * HEAD_DIM + d) * (CONV * CONV)
        convolved = tl.zeros([TILE_H * TILE_W, VALUE], tl.float32)
        for dy in range(CONV):
            for dx in tl.static_range(CONV):
                # y and x are masked apart: what is past the end of a row is not the start of the next one.
                near_y, near_x = y + (dy - CONV // 2), x + (dx - CONV // 2)
                near = on_grid & (near_y >= 0) & (near_y < grid_h) & (near_x >= 0) & (near_x < grid_w)
                neighbour = (extra_before + near_y * grid_w + near_x).to(tl.int64) * v_token
                values = tl.load(
                    v + neighbour[:, None] + d[None, :], mask=near[:, None] & (d < HEAD_DIM)[None, :], other=0.0
                )
                tap = tl.load(taps + (dy * CONV + dx), mask=d < HEAD_DIM, other=0.0).to(tl.float32)
                convolved += values.to(tl.float32) * tap[None, :]
        result += convolved
    place = ((batch * tokens + token.to(tl.int64)) * heads + head) * HEAD_DIM
    tl.store(
        out + place[:, None] + d[None, :],
        result.to(out.dtype.element_ty),
        mask=valid[:, None] & (d < HEAD_DIM)[None, :],
    )
