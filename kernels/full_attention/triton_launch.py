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
from jetvit.kernels.launch import Config, launch, power_of_two, strides
from jetvit.kernels.tuning import choose, latency_ms, size_step

# FlashAttention 3, where a user has activated it, is behind FLASH_ATTENTION.
_ENABLED = {
    "CUDNN_ATTENTION": torch.backends.cuda.cudnn_sdp_enabled,
    "FLASH_ATTENTION": torch.backends.cuda.flash_sdp_enabled,
    "EFFICIENT_ATTENTION": torch.backends.cuda.mem_efficient_sdp_enabled,
    "MATH": torch.backends.cuda.math_sdp_enabled,
}


def backends() -> list[str]:
    """The candidates: first "default", what torch takes by itself, then the fused backends that are not disabled."""
    return ["default", *(name for name, enabled in _ENABLED.items() if name != "MATH" and enabled())]


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
        backends(),
        lambda candidate: latency_ms(partial(attend, scale=scale, backend=candidate), q, k, v),
    )
    return attend(q, k, v, scale, backend, fall_back=True)


def rotate(x: Tensor, rope_y: Tensor, rope_x: Tensor, grid_h: int, grid_w: int, extra_before: int) -> Tensor:
    """x [batch, token, head, dim] with its grid tokens rotated, contiguous, in its dtype."""
    batch, tokens, heads, head_dim = x.shape
    config = Config(4, 2, {"BLOCK_N": 64})
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(
        triton_kernels.rotate,
        (batch * heads * ((tokens + config.blocks["BLOCK_N"] - 1) // config.blocks["BLOCK_N"]),),
        {"x_ptr": x, "rope_y_ptr": rope_y, "rope_x_ptr": rope_x, "out_ptr": out}
        | strides("x", x)
        | {"batch_heads": batch * heads, "heads": heads, "tokens": tokens}
        | {"grid_h": grid_h, "grid_w": grid_w, "extra_before": extra_before}
        | {"HEAD_DIM": head_dim, "HALF_D": power_of_two(head_dim // 2)},
        config,
    )
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str, fall_back: bool = False) -> Tensor:
    """Softmax attention of [batch, token, head, dim] by a backend of SDPA, contiguous.

    With `fall_back` another enabled backend takes what `backend` does not: it was measured with other strides, or with
    another size in the same step.

    Raises:
        RuntimeError: the backend does not take these tensors.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    chosen: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if backend != "default":
        others = [name for name, enabled in _ENABLED.items() if name != backend and enabled()] if fall_back else []
        chosen = sdpa_kernel([SDPBackend.__members__[name] for name in (backend, *others)], set_priority=True)
    with without_autocast(q.device), chosen:
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).contiguous()
