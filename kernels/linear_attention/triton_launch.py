"""Linear attention on a GPU: which kernels are launched, over which grids, with which configurations."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from jetvit.kernels.checks import is_absent
from jetvit.kernels.launch import Config, launch, multiprocessors, power_of_two, strides
from jetvit.kernels.linear_attention import triton_kernels
from jetvit.kernels.tuning import choose, latency_ms, size_step

# Programs of the first pass on one multiprocessor: as many as its registers hold of the default configuration.
_PROGRAMS = 2
_STATE_ROWS = 8  # of a head's state, in one program of `kv_state`


def state_configs(head_dim: int, dtype: torch.dtype) -> list[Config]:
    """The configurations of `kv_partials`, the default first."""
    if dtype == torch.float32:
        return [Config(8, 2, {"TOKENS": tokens}) for tokens in ((32, 16) if head_dim <= 64 else (16,))]
    if head_dim == 64:
        return [
            Config(warps, stages, {"TOKENS": tokens}) for warps, stages, tokens in ((4, 3, 64), (8, 3, 64), (8, 4, 32))
        ]
    # With three stages and a small head ptxas of triton 3.6 spills.
    return [Config(8, stages, {"TOKENS": 32}) for stages in ((2, 4) if head_dim < 64 else (3, 4))]


def mix_configs(head_dim: int, dtype: torch.dtype) -> list[Config]:
    """The configurations of `mix`, the default first. wgmma wants a tile of at least 64 tokens."""
    tiles = [(8, 8, 8)]
    if dtype == torch.float32:
        tiles = [(8, 8, 8), (8, 4, 8)] if head_dim <= 64 else [(8, 4, 8)]
    elif head_dim <= 64:
        tiles = [(8, 8, 8), (4, 8, 8), (4, 4, 16), (8, 8, 16)]
    return [Config(warps, 2, {"TILE_H": height, "TILE_W": width}) for warps, height, width in tiles]


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
    """What `jetvit::linear_attention` computes, by three launches, or five with a kernel generator.

    fp16, bf16 or fp32, an even head_dim of at most 128, feature_map "relu". fp32 products are three of tf32, which
    keeps fp32's accuracy.
    """
    assert feature_map == "relu", feature_map
    generates, rope = not is_absent(w1), not is_absent(rope_y)
    rope_y, rope_x = (table.to(torch.float32).contiguous() for table in (rope_y, rope_x))
    batch, tokens, heads, head_dim = q.shape
    problem = f"{q.dtype} head_dim={head_dim} rope={rope} size={size_step(batch * tokens * heads)}"
    place = (grid_h, grid_w, extra_before)

    config = choose(
        f"linear_attention.state {problem} mean={generates}",
        q.device,
        state_configs(head_dim, q.dtype),
        lambda candidate: latency_ms(
            partial(key_value_state, config=candidate), k, v, rope_y, rope_x, *place, generates
        ),
    )
    state, key_sums, mean = key_value_state(k, v, rope_y, rope_x, *place, generates, config)
    taps = b2.contiguous()
    if generates:
        taps = _matvec(_matvec(mean, w1, b1, silu=True), w2, b2, silu=False)
    operands = (q, v, rope_y, rope_x, state, key_sums, taps, *place, conv_size, eps)
    config = choose(
        f"linear_attention.mix {problem} conv={conv_size}",
        q.device,
        mix_configs(head_dim, q.dtype),
        lambda candidate: latency_ms(partial(mix, config=candidate), *operands),
    )
    return mix(*operands, config)


def key_value_state(
    k: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor,
    grid_h: int, grid_w: int, extra_before: int, mean: bool, config: Config,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The state, Σ f(k) and, with `mean`, the mean of v over the grid.

    Returns [batch·head, head_dim, head_dim] in k's dtype, by rows of v; fp32 [batch·head, head_dim]; and fp32
    [batch, head·head_dim] or [0].
    """
    batch, tokens, heads, head_dim = k.shape
    batch_heads = batch * heads
    splits = (multiprocessors(k.device) * _PROGRAMS + batch_heads - 1) // batch_heads
    block = splits * config.blocks["TOKENS"]
    sizes = {"HEAD_DIM": head_dim, "VALUE": power_of_two(head_dim), "MEAN": mean}
    # Flat: a trace would guard on whether an axis of as many splits has size 1.
    partials = torch.empty(
        splits * batch_heads * (head_dim * head_dim + 2 * head_dim), dtype=torch.float32, device=k.device
    )
    launch(
        triton_kernels.kv_partials,
        (batch_heads * splits,),
        {"k": k, "v": v, "rope_y": rope_y, "rope_x": rope_x, "partials": partials}
        | strides("k", k) | strides("v", v)
        | {"batch_heads": batch_heads, "heads": heads, "tokens": tokens}
        | {"chunk": (tokens + block - 1) // block * config.blocks["TOKENS"]}
        | {"grid_w": grid_w, "grid_tokens": grid_h * grid_w, "extra_before": extra_before}
        | sizes | _halves(head_dim, rope_y),
        config,
    )  # fmt: skip
    state = torch.empty((batch_heads, head_dim, head_dim), dtype=k.dtype, device=k.device)
    key_sums = torch.empty((batch_heads, head_dim), dtype=torch.float32, device=k.device)
    value_mean = torch.empty((batch, heads * head_dim) if mean else (0,), dtype=torch.float32, device=k.device)
    launch(
        triton_kernels.kv_state,
        (batch_heads, (head_dim + _STATE_ROWS - 1) // _STATE_ROWS),
        {"partials": partials, "state": state, "key_sums": key_sums, "value_mean": value_mean}
        | {"batch_heads": batch_heads, "splits": splits, "grid_tokens": grid_h * grid_w}
        | sizes,
        Config(8, 2, {"ROWS": _STATE_ROWS}),
    )
    return state, key_sums, value_mean


def mix(
    q: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor, state: Tensor, key_sums: Tensor, taps: Tensor,
    grid_h: int, grid_w: int, extra_before: int, conv_size: int, eps: float, config: Config,
) -> Tensor:  # fmt: skip
    """The output, from the state and the taps [batch, head·head_dim·K·K], or [head·head_dim·K·K] for all images."""
    batch, tokens, heads, head_dim = q.shape
    tile_h, tile_w = config.blocks["TILE_H"], config.blocks["TILE_W"]
    tiles_h, tiles_w = (grid_h + tile_h - 1) // tile_h, (grid_w + tile_w - 1) // tile_w
    extra_tiles = (tokens - grid_h * grid_w + tile_h * tile_w - 1) // (tile_h * tile_w)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    launch(
        triton_kernels.mix,
        (batch * heads * (tiles_h * tiles_w + extra_tiles),),
        {"q": q, "v": v, "rope_y": rope_y, "rope_x": rope_x}
        | {"state": state, "key_sums": key_sums, "taps": taps, "out": out}
        | strides("q", q) | strides("v", v)
        | {"taps_batch": taps.shape[1] if taps.dim() == 2 else 0}
        | {"batch_heads": batch * heads, "heads": heads, "tokens": tokens, "grid_h": grid_h, "grid_w": grid_w}
        | {"extra_before": extra_before, "tiles_w": tiles_w, "grid_tiles": tiles_h * tiles_w, "eps": eps}
        | {"HEAD_DIM": head_dim, "VALUE": power_of_two(head_dim), "CONV": conv_size} | _halves(head_dim, rope_y),
        config,
    )  # fmt: skip
    return out


def _halves(head_dim: int, rope_y: Tensor) -> dict[str, object]:
    return {"HALF": power_of_two(head_dim // 2), "ROPE": not is_absent(rope_y)}


def _matvec(x: Tensor, weight: Tensor, bias: Tensor, silu: bool) -> Tensor:
    """act(weight · x + bias) in fp32 for x [batch, columns]."""
    rows, columns = weight.shape
    # One step along the columns where 1024 hold them: W1 has few rows, so that they must keep the device busy.
    block = min(power_of_two(columns), 1024)
    config = Config(4, 2, {"ROWS": 1024 // block, "COLUMNS": block})
    out = torch.empty((x.shape[0], rows), dtype=torch.float32, device=x.device)
    launch(
        triton_kernels.matvec,
        # Flat: the second axis of a grid ends at 65535.
        ((rows + config.blocks["ROWS"] - 1) // config.blocks["ROWS"] * x.shape[0],),
        {"x": x, "weight": weight.contiguous(), "bias": bias.contiguous(), "out": out}
        | {"batch": x.shape[0], "rows": rows, "columns": columns, "SILU": silu},
        config,
    )
    return out
