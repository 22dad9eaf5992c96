"""Full attention on a GPU: a rotation of q and k in one pass each, then the fastest SDPA backend of this device."""

from __future__ import annotations

import contextlib
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jetvit.kernels.autocast import without_autocast
from jetvit.kernels.checks import is_absent
from jetvit.kernels.full_attention import triton_kernels
from jetvit.kernels.launch import Config, launch, power_of_two
from jetvit.kernels.tuning import choose, latency_ms, size_step

# The first is what torch takes by itself. FlashAttention 3, where a user has activated it, is behind FLASH_ATTENTION.
BACKENDS = ("default", "CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION")


def full_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope_y: Tensor,
    rope_x: Tensor,
    grid_h: int,
    grid_w: int,
    extra_before: int,
    scale: float,
) -> Tensor:
    """What `jetvit::full_attention` computes. fp16, bf16 or fp32, an even head_dim of at most 128."""
    if not is_absent(rope_y):
        rope_y, rope_x = (table.to(torch.float32).contiguous() for table in (rope_y, rope_x))
        q, k = (rotate(x, rope_y, rope_x, grid_h, grid_w, extra_before) for x in (q, k))
    batch, tokens, heads, head_dim = q.shape
    sizes = f"batch_heads={size_step(batch * heads)} tokens={size_step(tokens)}"
    backend = choose(
        f"full_attention {q.dtype} head_dim={head_dim} {sizes}",
        q.device,
        BACKENDS,
        lambda candidate: latency_ms(partial(attend, scale=scale, backend=candidate), q, k, v),
    )
    return attend(q, k, v, scale, backend)


def rotate(x: Tensor, rope_y: Tensor, rope_x: Tensor, grid_h: int, grid_w: int, extra_before: int) -> Tensor:
    """x [batch, token, head, dim] with its grid tokens rotated, contiguous, in its dtype."""
    batch, tokens, heads, head_dim = x.shape
    config = Config(4, 2, {"TOKENS": 64})
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(
        triton_kernels.rotate,
        (batch * heads * ((tokens + config.blocks["TOKENS"] - 1) // config.blocks["TOKENS"]),),
        {"x": x, "rope_y": rope_y, "rope_x": rope_x, "out": out}
        | dict(zip(("x_batch", "x_token", "x_head"), x.stride(), strict=False))
        | {"batch_heads": batch * heads, "heads": heads, "tokens": tokens}
        | {"grid_w": grid_w, "grid_tokens": grid_h * grid_w, "extra_before": extra_before}
        | {"HEAD_DIM": head_dim, "HALF": power_of_two(head_dim // 2)},
        config,
    )
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> Tensor:
    """Softmax attention of [batch, token, head, dim] by a backend of SDPA, contiguous.

    Raises:
        RuntimeError: the backend does not take these tensors.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    chosen = contextlib.nullcontext() if backend == "default" else sdpa_kernel(SDPBackend.__members__[backend])
    with without_autocast(q.device), chosen:
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).contiguous()
