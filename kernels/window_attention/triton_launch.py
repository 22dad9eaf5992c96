"""Window attention on a GPU: which kernels are launched, over which grids, with which configurations."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from jetvit.kernels.checks import is_absent
from jetvit.kernels.launch import Config, head_sizes, launch, power_of_two, rope_options, split_count, strides
from jetvit.kernels.tuning import choose, latency_ms, size_step
from jetvit.kernels.window_attention import triton_kernels
from jetvit.kernels.window_attention.windows import balanced_windows

_COMBINED_SPLITS = 32  # that `combine_extra` reads at once


def window_configs(head_dim: int, dtype: torch.dtype, window_tokens: int) -> list[Config]:
    """The configurations of `attend_windows` for windows of at most `window_tokens`, the default first.

    From 64 queries on, one warp has 16 of them: a head_dim of 64 then fits in 128 registers a thread, and 16 warps on a
    multiprocessor. Fewer queries are for windows that would leave most of 64 idle; they do without wgmma.
    """
    narrow = head_dim <= 64
    # Queries, keys, keys of the extra tokens, warps, stages.
    if dtype == torch.float32:
        if not narrow:  # of 4 warps at a head_dim of 128, triton 3.6 spills
            sizes = [(16, 16, 16, 8, 2)]
        elif window_tokens <= 16:
            sizes = [(16, 16, 16, 4, 2), (16, 16, 16, 8, 2)]
        else:
            sizes = [(64, 32, 32, 4, 2), (64, 16, 32, 4, 2), (128, 32, 32, 8, 2)]
    elif window_tokens <= 16:
        sizes = [(16, 16, 64, 4, 2), (16, 32, 64, 4, 2)]
    elif window_tokens <= 32:
        sizes = [(32, 32, 64, 4, 2), (32, 32, 128, 4, 2)]
    elif window_tokens <= 64:
        sizes = [(64, 32, 64, 4, 2), (64, 64, 64, 4, 2), (64, 64, 64, 4, 3)] if narrow else [(64, 32, 64, 4, 2)]
    elif window_tokens <= 128:
        sizes = [(64, 64, 64, 4, 2), (128, 64, 128, 8, 2)] if narrow else [(64, 32, 64, 4, 2), (128, 32, 128, 8, 2)]
    elif narrow:
        # With 4 warps three programs share a multiprocessor and hide each other's loads; 8 warps rotate a window's keys
        # half as often. Of 16 warps, which could do so once, the compiler spills.
        sizes = [(64, 64, 64, 4, 2), (128, 64, 128, 8, 2), (128, 32, 128, 8, 2)]
    else:  # few programs share a multiprocessor: fewer instructions decide, but heads padded to 128 would spill
        sizes = [(128, 64, 128, 8, 2)] * (head_dim == 128) + [(128, 32, 128, 8, 2)]
    configs = [
        Config(warps, stages, {"BLOCK_M": queries, "BLOCK_N": keys, "BLOCK_EN": extra_keys}, splits_per_sm=1)
        for queries, keys, extra_keys, warps, stages in sizes
    ]
    # Shorter programs for the extra tokens, where they are the last to end.
    return [*configs, replace(configs[0], splits_per_sm=2)]


def window_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope_y: Tensor,
    rope_x: Tensor,
    grid_h: int,
    grid_w: int,
    extra_before: int,
    window_h: int,
    window_w: int,
    scale: float,
) -> Tensor:
    """What `jetvit::window_attention` computes, by one launch, or two where there are extra tokens.

    fp16, bf16 or fp32, an even head_dim of at most 128. fp32 products are three of tf32, which keeps fp32's accuracy.
    """
    if scale < 0:  # the kernels take the largest product for the largest score
        q, scale = -q, -scale
    rope_y, rope_x = (table.to(torch.float32).contiguous() for table in (rope_y, rope_x))
    batch, tokens, heads, head_dim = q.shape
    extra = tokens - grid_h * grid_w
    operands = (q, k, v, rope_y, rope_x, grid_h, grid_w, extra_before, window_h, window_w, scale)
    sizes = f"window={window_h}x{window_w} extra={size_step(extra)} size={size_step(batch * tokens * heads)}"
    config = choose(
        f"window_attention {q.dtype} head_dim={head_dim} rope={not is_absent(rope_y)} {sizes}",
        q.device,
        window_configs(head_dim, q.dtype, window_h * window_w),
        lambda candidate: latency_ms(partial(attend, config=candidate), *operands),
    )
    return attend(*operands, config)


def attend(
    q: Tensor, k: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor,
    grid_h: int, grid_w: int, extra_before: int, window_h: int, window_w: int, scale: float, config: Config,
) -> Tensor:  # fmt: skip
    """The output, by the launches of one configuration. The number of extra tokens may be symbolic, and 0 then."""
    batch, tokens, heads, head_dim = q.shape
    (count_h, side_h), (count_w, side_w) = balanced_windows(grid_h, window_h), balanced_windows(grid_w, window_w)
    queries, keys = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
    blocks = (side_h * side_w + queries - 1) // queries
    extra = tokens - grid_h * grid_w
    has_extra = not (isinstance(extra, int) and extra == 0)
    # More queries at once would spill with large heads, and in fp32.
    many = isinstance(extra, int) and extra > 16 and head_dim <= 64 and q.dtype != torch.float32
    extra_queries = 32 if many else 16
    groups = (extra + extra_queries - 1) // extra_queries
    splits = split_count(config, batch * heads, tokens, config.blocks["BLOCK_EN"], q.device) if has_extra else 0
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    rows = batch * heads * extra
    # Flat: a trace would guard on whether an axis of as many splits has size 1.
    partials = torch.empty(splits * rows * (head_dim + 2), dtype=torch.float32, device=q.device)
    rope = rope_options(rope_y, q.dtype)
    launch(
        triton_kernels.attend_windows,
        ((count_h * count_w * blocks + splits * groups) * batch * heads,),
        {"q_ptr": q, "k_ptr": k, "v_ptr": v, "rope_y_ptr": rope_y, "rope_x_ptr": rope_x}
        | {"out_ptr": out, "partials_ptr": partials}
        | strides("q", q) | strides("k", k) | strides("v", v)
        | {"batch": batch, "heads": heads, "tokens": tokens}
        | {"grid_h": grid_h, "grid_w": grid_w, "extra_before": extra_before}
        | {"count_w": count_w, "side_h": side_h, "side_w": side_w, "blocks": blocks}
        | {"splits": splits, "groups": groups, "EXTRA": has_extra, "BLOCK_E": extra_queries}
        | {"BLOCK_R": rest_block(extra, side_h * side_w, config, head_dim)}
        | {"SIDE_W": common_width(grid_w, side_w, keys)}
        # Not zero: it multiplies the −∞ of masked scores.
        | {"SCALE": max(scale, 1e-30), "PRECISION": "tf32x3" if q.dtype == torch.float32 else "ieee"}
        | head_sizes(head_dim) | rope,
        config,
    )  # fmt: skip
    if has_extra:
        launch(
            triton_kernels.combine_extra,
            (rows,),
            {"partials_ptr": partials, "out_ptr": out, "rows": rows, "heads": heads, "tokens": tokens}
            | {"extra": extra, "extra_before": extra_before, "splits": splits}
            | {"HEAD_DIM": head_dim, "BLOCK_D": power_of_two(head_dim)},
            Config(4, 2, {"BLOCK_S": _COMBINED_SPLITS}),
        )
    return out


def rest_block(extra: int, window_tokens: int, config: Config, head_dim: int) -> int:
    """The keys that are loaded at once where they fill no whole block: 16, or as many as in a whole block.

    One block that is mostly masked is less work than several small ones, but with 4 warps and large heads it spills.
    """
    keys = config.blocks["BLOCK_N"]
    rest = extra + window_tokens % keys
    fits = isinstance(rest, int) and rest <= 16
    return 16 if fits or (head_dim > 64 and config.num_warps == 4) else min(keys, 64)


def common_width(grid_w: int, side_w: int, keys: int) -> int:
    """The width that all windows have, if blocks of `keys` are whole rows of such a width and it is known, else 0."""
    if not (isinstance(grid_w, int) and isinstance(side_w, int)):
        return 0
    return side_w if grid_w % side_w == 0 and keys % side_w == 0 else 0
