"""Window attention on a GPU: which kernels are launched, over which grids, with which configurations."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from jetvit.kernels.checks import is_absent
from jetvit.kernels.launch import Config, launch, multiprocessors, power_of_two, strides
from jetvit.kernels.tuning import choose, latency_ms, size_step
from jetvit.kernels.window_attention import triton_kernels
from jetvit.kernels.window_attention.windows import balanced_windows

# Programs of `attend_extra` on one multiprocessor: as many as its registers hold of the default configuration.
_PROGRAMS = 2
_COMBINED_SPLITS = 32  # that `combine_extra` reads at once


def window_configs(head_dim: int, dtype: torch.dtype, window_tokens: int) -> list[Config]:
    """The configurations of `attend_windows` for windows of at most `window_tokens`, the default first.

    From 64 queries on, one warp has 16 of them: a head_dim of 64 then fits in 128 registers a thread, and 16 warps on a
    multiprocessor. Fewer queries are for windows that would leave most of 64 idle; they do without wgmma.
    """
    narrow = head_dim <= 64
    if dtype == torch.float32:
        sizes = [(16, 16, 16, 4, 2), (16, 16, 16, 8, 2)]
        if narrow and window_tokens > 16:
            sizes = [(64, 32, 16, 4, 2), (64, 16, 16, 4, 2), (128, 32, 16, 8, 2)]
    elif window_tokens <= 16:
        sizes = [(16, 16, 16, 2, 2), (16, 32, 32, 4, 2)]
    elif window_tokens <= 32:
        sizes = [(32, 32, 32, 4, 2), (32, 32, 16, 4, 2)]
    elif window_tokens <= 64:
        sizes = [(64, 32, 32, 4, 2), (64, 64, 32, 4, 2), (64, 64, 16, 4, 3)] if narrow else [(64, 64, 32, 4, 2)]
    else:
        sizes = [(128, 64, 32, 8, 2), (128, 64, 32, 8, 3), (64, 64, 32, 4, 2), (64, 64, 32, 4, 3)]
        if not narrow:
            sizes = [(64, 64, 32, 4, 2), (128, 64, 32, 8, 2)]
    return [
        Config(warps, stages, {"QUERIES": queries, "KEYS": keys, "REST": rest})
        for queries, keys, rest, warps, stages in sizes
    ]


def extra_configs(head_dim: int, dtype: torch.dtype, extra: int) -> list[Config]:
    """The configurations of `attend_extra` for `extra` tokens, which may be symbolic; the default first."""
    narrow = head_dim <= 64
    if dtype == torch.float32:
        sizes = [(16, 64, 4, 2), (16, 32, 8, 2)] if narrow else [(16, 16, 8, 2), (16, 16, 4, 2)]
    else:
        queries = 32 if isinstance(extra, int) and extra > 16 else 16
        sizes = [(queries, 128, 8, 2), (queries, 64, 4, 2), (queries, 64, 4, 3)]
    return [Config(warps, stages, {"QUERIES": queries, "KEYS": keys}) for queries, keys, warps, stages in sizes]


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
    """What `jetvit::window_attention` computes, by one launch, or three where there are extra tokens.

    fp16, bf16 or fp32, an even head_dim of at most 128. fp32 products are three of tf32, which keeps fp32's accuracy.
    """
    if scale < 0:  # the kernels take the largest product for the largest score
        q, scale = -q, -scale
    rope_y, rope_x = (table.to(torch.float32).contiguous() for table in (rope_y, rope_x))
    batch, tokens, heads, head_dim = q.shape
    extra = tokens - grid_h * grid_w
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    operands = (q, k, v, rope_y, rope_x, out, grid_h, grid_w, extra_before)
    problem = f"{q.dtype} head_dim={head_dim} rope={not is_absent(rope_y)} size={size_step(batch * tokens * heads)}"

    if not (isinstance(extra, int) and extra == 0):
        config = choose(
            f"window_attention.extra {problem} extra={size_step(extra)}",
            q.device,
            extra_configs(head_dim, q.dtype, extra),
            lambda candidate: latency_ms(partial(attend_extra, config=candidate), *operands, scale),
        )
        attend_extra(*operands, scale, config)
    config = choose(
        f"window_attention.windows {problem} window={window_h}x{window_w}",
        q.device,
        window_configs(head_dim, q.dtype, window_h * window_w),
        lambda candidate: latency_ms(partial(attend_windows, config=candidate), *operands, window_h, window_w, scale),
    )
    attend_windows(*operands, window_h, window_w, scale, config)
    return out


def attend_windows(
    q: Tensor, k: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor, out: Tensor,
    grid_h: int, grid_w: int, extra_before: int, window_h: int, window_w: int, scale: float, config: Config,
) -> None:  # fmt: skip
    """Write the grid tokens of `out`."""
    batch, tokens, heads, _ = q.shape
    (count_h, side_h), (count_w, side_w) = balanced_windows(grid_h, window_h), balanced_windows(grid_w, window_w)
    queries = config.blocks["QUERIES"]
    blocks = (side_h * side_w + queries - 1) // queries
    launch(
        triton_kernels.attend_windows,
        (count_h * count_w * blocks * batch * heads,),
        {"q": q, "k": k, "v": v, "rope_y": rope_y, "rope_x": rope_x, "out": out}
        | strides("q", q) | strides("k", k) | strides("v", v)
        | {"batch": batch, "heads": heads, "tokens": tokens}
        | {"grid_h": grid_h, "grid_w": grid_w, "extra_before": extra_before}
        | {"count_w": count_w, "side_h": side_h, "side_w": side_w, "blocks": blocks}
        | _options(q, rope_y, scale),
        config,
    )  # fmt: skip


def attend_extra(
    q: Tensor, k: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor, out: Tensor,
    grid_h: int, grid_w: int, extra_before: int, scale: float, config: Config,
) -> None:  # fmt: skip
    """Write the extra tokens of `out`, of which there may be none where their number is symbolic."""
    batch, tokens, heads, head_dim = q.shape
    extra = tokens - grid_h * grid_w
    rows = batch * heads * extra
    queries = config.blocks["QUERIES"]
    groups = (extra + queries - 1) // queries
    splits = (multiprocessors(q.device) * _PROGRAMS + batch * heads - 1) // (batch * heads)
    block = splits * config.blocks["KEYS"]
    # Flat: a trace would guard on whether an axis of as many splits has size 1.
    partials = torch.empty(splits * rows * (head_dim + 2), dtype=torch.float32, device=q.device)
    launch(
        triton_kernels.attend_extra,
        (splits * groups * batch * heads,),
        {"q": q, "k": k, "v": v, "rope_y": rope_y, "rope_x": rope_x, "partials": partials}
        | strides("q", q) | strides("k", k) | strides("v", v)
        | {"batch": batch, "heads": heads, "tokens": tokens}
        | {"grid_h": grid_h, "grid_w": grid_w, "extra_before": extra_before}
        | {"groups": groups, "splits": splits, "chunk": (tokens + block - 1) // block * config.blocks["KEYS"]}
        | _options(q, rope_y, scale),
        config,
    )  # fmt: skip
    launch(
        triton_kernels.combine_extra,
        (rows,),
        {"partials": partials, "out": out, "rows": rows, "heads": heads, "tokens": tokens}
        | {"extra": extra, "extra_before": extra_before, "splits": splits}
        | {"HEAD_DIM": head_dim, "VALUE": power_of_two(head_dim)},
        Config(4, 2, {"SPLITS": _COMBINED_SPLITS}),
    )


def _options(q: Tensor, rope_y: Tensor, scale: float) -> dict[str, object]:
    head_dim, rope = q.shape[3], not is_absent(rope_y)
    return {
        # Not zero: it multiplies the −∞ of masked scores.
        "scale": max(scale, 1e-30),
        "HEAD_DIM": head_dim,
        "HALF": power_of_two(head_dim // 2),
        "VALUE": power_of_two(head_dim),
        "ROPE": rope,
        # A turned value can be √2 times as large, beyond what fp16 holds.
        "SHRINK": 0.5 if rope and q.dtype == torch.float16 else 1.0,
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "ieee",
    }
