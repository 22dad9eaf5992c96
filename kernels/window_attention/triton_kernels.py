"""The Triton kernels of window attention.

    attend_windows   q, k, v → the output of the grid tokens: one block of queries of one window a program
    attend_extra     q, k, v → for each split of the tokens, what the extra tokens see of it: maximum, sum, values
    combine_extra    these partial results → the output of the extra tokens

Tokens are read where they stand in [batch, token, head, dim]; nothing is cut out, padded or copied. A window's queries
see two runs of keys: first, in small masked blocks, the extra tokens and what of the window does not fill a block;
then the full blocks of the window, where nothing is masked. Windows at the border are as small as they are. Softmax is
online, to the base 2, in fp32. With RoPE a tile is loaded by its halves, turned in registers and joined to
[first half | second half], each half padded to a power of two; without, it is loaded as it stands.

The extra tokens are few and see everything, so their products are transposed, Sᵀ = K·Qᵀ and Oᵀ = Vᵀ·Pᵀ: wgmma wants
64 rows, and here they are keys and head_dim. The splits run from the last token to the first, and `attend_windows`
from the first to the last: it starts with the keys and values that `attend_extra` has left in L2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from jetvit.kernels.triton_rope import load_halves

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def inverse_of(divisor):
    """What `quotient` needs to know of an int32 divisor that is at least 1."""
    # A cast and not `.to`: of a scalar that is 1 Inductor makes a constant, which has no methods.
    return 0xFFFFFFFF // tl.cast(divisor, tl.uint32)


@triton.jit
def quotient(i, divisor, inverse):
    """i // divisor for int32 i ≥ 0, in fewer instructions than the compiler's own division of a tensor."""
    estimate = tl.umulhi(i.to(tl.uint32), inverse).to(tl.int32)  # right, or one too small
    return estimate + (i - estimate * divisor >= divisor).to(tl.int32)


@triton.jit
def load_rows(base, token, stride, valid, HEAD_DIM: tl.constexpr, VALUE: tl.constexpr):
    """Rows of tokens as they stand, [token, VALUE], zero where not valid or past head_dim."""
    d = tl.arange(0, VALUE)
    place = (token.to(tl.int64) * stride)[:, None] + d[None, :]
    return tl.load(base + place, mask=valid[:, None] & (d < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def load_turned(
    base, token, stride, valid, rope_y, rope_x, y, x, rotated,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, VALUE: tl.constexpr, ROPE: tl.constexpr, SHRINK: tl.constexpr,
):  # fmt: skip
    """Rows of q or k, [token, 2·HALF] with RoPE and times SHRINK, else as by `load_rows`.

    y, x, rotated: each token's place in the grid and whether RoPE turns it.
    """
    # With an `else`: Triton compiles what follows a return as well, and refuses two shapes.
    if not ROPE:
        return load_rows(base, token, stride, valid, HEAD_DIM, VALUE)
    else:
        first, second = load_halves(
            base, token.to(tl.int64) * stride, valid, rope_y, rope_x, y, x, rotated, HEAD_DIM, HALF, ROPE
        )
        dtype: tl.constexpr = base.dtype.element_ty
        halves = tl.join((first * SHRINK).to(dtype), (second * SHRINK).to(dtype))
        return tl.reshape(tl.permute(halves, (0, 2, 1)), (halves.shape[0], 2 * HALF))


@triton.jit
def attend(scores, values, top, total, out, to_base_2, PRECISION: tl.constexpr):
    """One step of online softmax: scores [query, key] and values [key, VALUE] into the maximum, the sum and the output.

    top: the largest score so far, times `to_base_2`.
    """
    new_top = tl.maximum(top, tl.max(scores, 1) * to_base_2)
    weights = tl.exp2(scores * to_base_2 - new_top[:, None])
    decay = tl.exp2(top - new_top)
    total = total * decay + tl.sum(weights, 1)  # ahead of the product, beside which fp32 weights would need registers
    product = tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    # A fused multiply-add, because Triton folds a sum into the product, and then it runs on into the next step, where
    # the compiler cannot load the queries beside it and has to wait after every instruction.
    out = tl.fma(out, tl.broadcast_to(decay[:, None], out.shape), product)
    return new_top, total, out


@triton.jit(
    do_not_specialize=[
        "batch", "heads", "tokens", "grid_h", "grid_w", "extra_before", "count_w", "side_h", "side_w", "blocks"
    ]
)  # fmt: skip
def attend_windows(
    q, k, v, rope_y, rope_x, out,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    batch, heads, tokens, grid_h, grid_w, extra_before, count_w, side_h, side_w, blocks, scale,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, VALUE: tl.constexpr,
    ROPE: tl.constexpr, SHRINK: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """QUERIES tokens of one window of one head. blocks: the programs that share a window of side_h × side_w tokens."""
    head = (tl.program_id(0) % heads).to(tl.int64)
    image = (tl.program_id(0) // heads % batch).to(tl.int64)
    part = tl.program_id(0) // heads // batch
    window = part // blocks
    top_row = window // count_w * side_h
    left_column = window % count_w * side_w
    width = tl.minimum(side_w, grid_w - left_column)
    size = tl.minimum(side_h, grid_h - top_row) * width
    inverse = inverse_of(width)
    corner = extra_before + top_row * grid_w + left_column
    q += image * q_batch + head * q_head
    k += image * k_batch + head * k_head
    v += image * v_batch + head * v_head
    out += (image * tokens * heads + head) * HEAD_DIM
    to_base_2 = scale * (LOG2_E / (SHRINK * SHRINK))

    i = part % blocks * QUERIES + tl.arange(0, QUERIES)
    query_y = quotient(i, width, inverse)
    query_x = i - query_y * width
    query = corner + query_y * grid_w + query_x
    queries = load_turned(
        q, query, q_token, i < size, rope_y, rope_x, top_row + query_y, left_column + query_x, i < size,
        HEAD_DIM, HALF, VALUE, ROPE, SHRINK,
    )  # fmt: skip
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    result = tl.zeros([QUERIES, VALUE], tl.float32)

    extra = tokens - grid_h * grid_w
    full = size - size % KEYS
    rest = extra + size - full
    for start in range(0, rest, REST):
        e = start + tl.arange(0, REST)
        rest_y = quotient(tl.maximum(e - extra + full, 0), width, inverse)
        rest_x = e - extra + full - rest_y * width
        extra_token = tl.where(e < extra_before, e, e + grid_h * grid_w)
        token = tl.where(e < extra, extra_token, corner + rest_y * grid_w + rest_x)
        keys = load_turned(
            k, token, k_token, e < rest, rope_y, rope_x, top_row + rest_y, left_column + rest_x, e >= extra,
            HEAD_DIM, HALF, VALUE, ROPE, SHRINK,
        )  # fmt: skip
        values = load_rows(v, token, v_token, e < rest, HEAD_DIM, VALUE)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        scores = tl.where((e < rest)[None, :], scores, float("-inf"))
        top, total, result = attend(scores, values, top, total, result, to_base_2, PRECISION)
    always = tl.full([KEYS], True, tl.int1)
    for start in range(0, full, KEYS):
        j = start + tl.arange(0, KEYS)
        key_y = quotient(j, width, inverse)
        key_x = j - key_y * width
        key = corner + key_y * grid_w + key_x
        full_keys = load_turned(
            k, key, k_token, always, rope_y, rope_x, top_row + key_y, left_column + key_x, always,
            HEAD_DIM, HALF, VALUE, ROPE, SHRINK,
        )  # fmt: skip
        full_values = load_rows(v, key, v_token, always, HEAD_DIM, VALUE)
        full_scores = tl.dot(queries, tl.trans(full_keys), input_precision=PRECISION)
        top, total, result = attend(full_scores, full_values, top, total, result, to_base_2, PRECISION)
    result = result * (1.0 / total)[:, None]
    d = tl.arange(0, VALUE)
    row = query.to(tl.int64) * (heads * HEAD_DIM)
    inside = (i < size)[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(out + row[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=["batch", "heads", "tokens", "grid_h", "grid_w", "extra_before", "groups", "splits", "chunk"]
)
def attend_extra(
    q, k, v, rope_y, rope_x, partials,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head,
    batch, heads, tokens, grid_h, grid_w, extra_before, groups, splits, chunk, scale,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, VALUE: tl.constexpr,
    ROPE: tl.constexpr, SHRINK: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """A group of QUERIES extra tokens of one head, and `chunk` tokens as their keys.

    partials: fp32 [split, batch, head, extra token, head_dim + 2], the output not yet divided by the sum, the largest
    score to the base 2 and the sum.
    """
    head = (tl.program_id(0) % heads).to(tl.int64)
    image = (tl.program_id(0) // heads % batch).to(tl.int64)
    part = tl.program_id(0) // heads // batch
    split = splits - 1 - part // groups
    q += image * q_batch + head * q_head
    k += image * k_batch + head * k_head
    v += image * v_batch + head * v_head
    to_base_2 = scale * (LOG2_E / (SHRINK * SHRINK))

    extra = tokens - grid_h * grid_w
    e = part % groups * QUERIES + tl.arange(0, QUERIES)
    query = tl.where(e < extra_before, e, e + grid_h * grid_w)
    queries = load_turned(
        q, query, q_token, e < extra, rope_y, rope_x, e, e, e < 0, HEAD_DIM, HALF, VALUE, ROPE, SHRINK
    )
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([KEYS, QUERIES], tl.float32)  # added up over the keys of a block once, at the end
    result = tl.zeros([VALUE, QUERIES], tl.float32)
    inverse = inverse_of(grid_w)
    first = split * chunk
    last = tl.minimum(first + chunk, tokens)
    for start in range(first, last, KEYS):
        key = start + tl.arange(0, KEYS)
        place = key - extra_before
        on_grid = (place >= 0) & (place < grid_h * grid_w)
        y = quotient(tl.maximum(place, 0), grid_w, inverse)
        keys = load_turned(
            k, key, k_token, key < last, rope_y, rope_x, y, place - y * grid_w, on_grid,
            HEAD_DIM, HALF, VALUE, ROPE, SHRINK,
        )  # fmt: skip
        values = load_rows(v, key, v_token, key < last, HEAD_DIM, VALUE)
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
        scores = tl.where((key < last)[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 0) * to_base_2)
        weights = tl.exp2(scores * to_base_2 - new_top[None, :])
        decay = tl.exp2(top - new_top)
        total = total * decay[None, :] + weights
        product = tl.dot(tl.trans(values), weights.to(values.dtype), input_precision=PRECISION)
        result = tl.fma(result, tl.broadcast_to(decay[None, :], result.shape), product)
        top = new_top
    d = tl.arange(0, VALUE)
    row = partials + (((split * batch + image) * heads + head) * extra + e) * (HEAD_DIM + 2)
    tl.store(row[None, :] + d[:, None], result, mask=(d < HEAD_DIM)[:, None] & (e < extra)[None, :])
    tl.store(row + HEAD_DIM, top, mask=e < extra)
    tl.store(row + HEAD_DIM + 1, tl.sum(total, 0), mask=e < extra)


@triton.jit(do_not_specialize=["rows", "heads", "tokens", "extra", "extra_before", "splits"])
def combine_extra(
    partials, out,
    rows, heads, tokens, extra, extra_before, splits,
    HEAD_DIM: tl.constexpr, VALUE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One extra token of one head, added up split by split. rows: batch · head · extra token."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, VALUE)
    top = float("-inf")
    total = 0.0
    result = tl.zeros([VALUE], tl.float32)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        part = partials + (split * rows + row) * (HEAD_DIM + 2)
        tops = tl.load(part + HEAD_DIM, mask=split < splits, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(tops, 0))
        # A split without tokens has −inf, and so no weight. The first split to come has tokens.
        decay = tl.exp2(top - new_top)
        weights = tl.exp2(tops - new_top)
        sums = tl.load(part + HEAD_DIM + 1, mask=split < splits, other=0.0)
        inside = (split < splits)[:, None] & (d < HEAD_DIM)[None, :]
        results = tl.load(part[:, None] + d[None, :], mask=inside, other=0.0)
        total = total * decay + tl.sum(sums * weights, 0)
        result = result * decay + tl.sum(results * weights[:, None], 0)
        top = new_top
    e = (row % extra).to(tl.int32)
    token = tl.where(e < extra_before, e, e + tokens - extra)
    batch_head = row // extra
    image, head = batch_head // heads, batch_head % heads
    place = ((image * tokens + token) * heads + head) * HEAD_DIM
    tl.store(out + place + d, (result / total).to(out.dtype.element_ty), mask=d < HEAD_DIM)
