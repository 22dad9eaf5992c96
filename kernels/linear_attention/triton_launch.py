"""Linear attention on a GPU: which kernels are launched, over which grids, with which configurations."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from jetvit.kernels.checks import is_absent
from jetvit.kernels.launch import Config, head_sizes, launch, power_of_two, rope_options, split_count, strides
from jetvit.kernels.linear_attention import triton_kernels
from jetvit.kernels.tuning import choose, latency_ms, size_step

_STATE_ROWS = 8  # of a head's state, in one program of `kv_state`
_HIDDEN_ROWS = 4  # hidden units of the generator, in one program of `kv_state`


def state_configs(head_dim: int, dtype: torch.dtype) -> list[Config]:
    """The configurations of `kv_partials`, the default first."""
    # Warps, stages, tokens, programs that fit on a multiprocessor.
    if dtype == torch.float32:
        sizes = [(8, 2, 32, 1), (8, 1, 16, 1)] if head_dim == 64 else [(8, 1, 16, 1)]
    elif head_dim == 64:
        sizes = [(4, 3, 64, 2), (4, 4, 32, 3), (8, 3, 64, 2)]
    # With three stages and a small head ptxas of triton 3.6 spills.
    elif head_dim < 64:
        sizes = [(8, 2, 32, 2), (8, 4, 32, 2)]
    else:
        sizes = [(8, 3, 32, 1), (8, 4, 32, 1)]
    return [Config(warps, stages, {"BLOCK_N": tokens}, programs) for warps, stages, tokens, programs in sizes]


def mix_configs(head_dim: int, dtype: torch.dtype, conv_size: int) -> list[Config]:
    """The configurations of `mix`, the default first."""
    # Warps, columns, rows, unrolled. A tile keeps CONV output rows of sums in registers; those of 8 warps and 16
    # columns at a head_dim of 64 are as many as of 8 warps and 8 columns at 128.
    if conv_size == 0:  # no rows: 64 · 4 tokens in a row, 64 for wgmma
        tokens = 64 if dtype != torch.float32 else 16
        sizes = [(4, tokens, 4, False), (8, tokens, 4, False)]
    elif dtype == torch.float32:
        sizes = [(8, 16, 16, False), (8, 16, 8, False)] if head_dim <= 64 else [(16, 16, 16, False)]
    elif head_dim > 64:
        sizes = [(8, 16, 16, conv_size <= 3), (8, 16, 16, False), (8, 16, 8, False)]
    elif conv_size > 3:
        sizes = [(4, 16, 16, False), (8, 16, 16, False), (4, 16, 8, False)]
    else:
        sizes = [(4, 32, 16, True), (4, 16, 16, True), (4, 16, 16, False), (4, 16, 8, False)]
    return [
        Config(warps, 2, {"BLOCK_W": columns, "ROWS": rows, "UNROLL": unrolled})
        for warps, columns, rows, unrolled in dict.fromkeys(sizes)
    ]


def linear_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope_y: Tensor,
    rope_x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    grid_h: int,
    grid_w: int,
    extra_before: int,
    conv_size: int,
    eps: float,
    feature_map: str,
) -> Tensor:
    """What `jetvit::linear_attention` computes, by three launches, or four with a kernel generator.

    fp16, bf16 or fp32, an even head_dim of at most 128, feature_map "relu". fp32 products are three of tf32, which
    keeps fp32's accuracy.
    """
    assert feature_map == "relu", feature_map
    rope_y, rope_x = (table.to(torch.float32).contiguous() for table in (rope_y, rope_x))
    batch, tokens, heads, head_dim = q.shape
    generates = not is_absent(w1)
    problem = f"{q.dtype} head_dim={head_dim} rope={not is_absent(rope_y)} size={size_step(batch * tokens * heads)}"
    place = (grid_h, grid_w, extra_before)

    config = choose(
        f"linear_attention.state {problem} mean={generates}",
        q.device,
        state_configs(head_dim, q.dtype),
        lambda candidate: latency_ms(partial(key_value_state, config=candidate), k, v, rope_y, rope_x, w1, b1, *place),
    )
    state, key_sums, hidden = key_value_state(k, v, rope_y, rope_x, w1, b1, *place, config)
    taps = generate_taps(hidden, w2, b2, conv_size) if generates else shared_taps(b2, conv_size)
    operands = (q, v, rope_y, rope_x, state, key_sums, taps, *place, conv_size, eps)
    config = choose(
        f"linear_attention.mix {problem} conv={conv_size}",
        q.device,
        mix_configs(head_dim, q.dtype, conv_size),
        lambda candidate: latency_ms(partial(mix, config=candidate), *operands),
    )
    return mix(*operands, config)


def key_value_state(
    k: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor, w1: Tensor, b1: Tensor,
    grid_h: int, grid_w: int, extra_before: int, config: Config,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The state, Σ f(k) and, with w1 and b1, the hidden units of the generator.

    Returns [batch·head, head_dim, head_dim] in k's dtype, by rows of v; fp32 [batch·head, head_dim]; and fp32
    [batch, unit] or [0].
    """
    batch, tokens, heads, head_dim = k.shape
    batch_heads = batch * heads
    mean = not is_absent(w1)
    splits = split_count(config, batch_heads, tokens, config.blocks["BLOCK_N"], k.device)
    # Flat: a trace would guard on whether an axis of as many splits has size 1.
    partials = torch.empty(
        splits * batch_heads * (head_dim * head_dim + 2 * head_dim), dtype=torch.float32, device=k.device
    )
    launch(
        triton_kernels.kv_partials,
        (batch_heads * splits,),
        {"k_ptr": k, "v_ptr": v, "rope_y_ptr": rope_y, "rope_x_ptr": rope_x, "partials_ptr": partials}
        | strides("k", k) | strides("v", v)
        | {"batch_heads": batch_heads, "heads": heads, "tokens": tokens, "splits": splits}
        | {"grid_h": grid_h, "grid_w": grid_w, "extra_before": extra_before, "MEAN": mean}
        | head_sizes(head_dim) | rope_options(rope_y, k.dtype),
        config,
    )  # fmt: skip
    state = torch.empty((batch_heads, head_dim, head_dim), dtype=k.dtype, device=k.device)
    key_sums = torch.empty((batch_heads, head_dim), dtype=torch.float32, device=k.device)
    units = w1.shape[0] if mean else 0
    hidden = torch.empty((batch, units) if mean else (0,), dtype=torch.float32, device=k.device)
    block_d = power_of_two(head_dim)
    state_programs = batch_heads * ((head_dim + _STATE_ROWS - 1) // _STATE_ROWS)
    hidden_programs = batch * ((units + _HIDDEN_ROWS - 1) // _HIDDEN_ROWS)
    launch(
        triton_kernels.kv_state,
        (state_programs + hidden_programs,),
        {"partials_ptr": partials, "state_ptr": state, "key_sums_ptr": key_sums}
        | {"w1_ptr": w1.contiguous(), "b1_ptr": b1.contiguous(), "hidden_ptr": hidden}
        | {"batch_heads": batch_heads, "heads": heads, "splits": splits}
        | {"state_programs": state_programs, "units": units, "grid_tokens": grid_h * grid_w}
        | {"HEAD_DIM": head_dim, "BLOCK_D": block_d, "MEAN": mean},
        # As many partial results at once as registers hold of 8 rows or 256 channels: most often all.
        Config(8, 2, {"BLOCK_S": 16, "BLOCK_C": 256, "STATE_ROWS": _STATE_ROWS, "HIDDEN_ROWS": _HIDDEN_ROWS}),
    )  # fmt: skip
    return state, key_sums, hidden


def generate_taps(hidden: Tensor, w2: Tensor, b2: Tensor, conv_size: int) -> Tensor:
    """The taps [batch, K·K, head·head_dim], fp32, from the hidden units [batch, unit]."""
    rows, units = w2.shape
    batch, taps = hidden.shape[0], conv_size**2
    block = min(power_of_two(units), 1024)
    config = Config(4, 2, {"ROWS": 1024 // block, "BLOCK_C": block})
    out = torch.empty((batch, taps, rows // taps), dtype=torch.float32, device=hidden.device)
    launch(
        triton_kernels.generate_taps,
        # Flat: the second axis of a grid ends at 65535.
        ((rows + config.blocks["ROWS"] - 1) // config.blocks["ROWS"] * batch,),
        {"hidden_ptr": hidden, "w2_ptr": w2.contiguous(), "b2_ptr": b2.contiguous(), "taps_ptr": out}
        | {"batch": batch, "channels": rows // taps, "units": units, "TAPS": taps},
        config,
    )
    return out


def shared_taps(b2: Tensor, conv_size: int) -> Tensor:
    """The taps [K·K, head·head_dim] that all images share, or [0] without a convolution."""
    return b2.unflatten(0, (-1, conv_size**2)).t().contiguous() if conv_size else b2


def mix(
    q: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor, state: Tensor, key_sums: Tensor, taps: Tensor,
    grid_h: int, grid_w: int, extra_before: int, conv_size: int, eps: float, config: Config,
) -> Tensor:  # fmt: skip
    """The output, from the state and the taps [batch, K·K, head·head_dim], or [K·K, head·head_dim] for all images."""
    batch, tokens, heads, head_dim = q.shape
    columns, rows = config.blocks["BLOCK_W"], config.blocks["ROWS"]
    tiles_w, tiles_h = (grid_w + columns - 1) // columns, (grid_h + rows - 1) // rows
    flat = tokens - grid_h * grid_w if conv_size else tokens
    flat_tiles = (flat + rows * columns - 1) // (rows * columns)
    tiles = flat_tiles + (tiles_h * tiles_w if conv_size else 0)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    launch(
        triton_kernels.mix,
        (batch * heads * tiles,),
        {"q_ptr": q, "v_ptr": v, "rope_y_ptr": rope_y, "rope_x_ptr": rope_x}
        | {"state_ptr": state, "key_sums_ptr": key_sums, "taps_ptr": taps, "out_ptr": out}
        | strides("q", q) | strides("v", v)
        | {"stride_tb": taps.stride(0) if taps.dim() == 3 else 0}
        | {"batch_heads": batch * heads, "heads": heads, "tokens": tokens, "grid_h": grid_h, "grid_w": grid_w}
        | {"extra_before": extra_before, "tiles_w": tiles_w, "extra_tiles": flat_tiles}
        # Tiles of equal height, where the last would be short.
        | {"rows": (grid_h + tiles_h - 1) // tiles_h, "CONV": conv_size, "ROPE": not is_absent(rope_y)}
        # In fp32 a smaller eps could make 1 / (0 + eps) infinite.
        | {"EPS": max(eps, 1e-30)} | head_sizes(head_dim),
        config,
    )  # fmt: skip
    return out
