"""Full attention in ATen: the meaning of the operator, and the CPU's own implementation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from jetvit.kernels.autocast import without_autocast
from jetvit.kernels.checks import is_absent
from jetvit.kernels.rope import rotate


def full_attention_reference(
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
    """Compute `jetvit::full_attention`; the operator's own docstring has the contract."""
    if q.shape[2] == 0:  # on a CPU torch 2.11 divides by the count of heads, which ends the process
        return q.new_empty(q.shape)
    with without_autocast(q.device):
        if not is_absent(rope_y):
            q, k = (x.to(v.dtype) for x in rotate(q, k, rope_y, rope_x, extra_before))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).contiguous()
