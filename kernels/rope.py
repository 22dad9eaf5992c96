"""Axial rotary position embedding from separable tables, as the operators apply it.

Tables: `rope_y` [grid_h, 2, head_dim / 4] and `rope_x` [grid_w, 2, head_dim / 4], fp32; index 0 of the middle axis is
the cosine, 1 the sine. A grid token (y, x) has the head_dim / 2 angles a = (y's | x's), and with x1, x2 the halves of
its vector the result is (x1·cos a − x2·sin a | x2·cos a + x1·sin a). This is HF DINOv3's `apply_rotary_pos_emb`, whose
angles are a tiled twice. Extra tokens are not rotated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotate(q: Tensor, k: Tensor, rope_y: Tensor, rope_x: Tensor, extra_before: int) -> tuple[Tensor, Tensor]:
    """Rotate the grid tokens of q and k [batch, token, head, dim]; computed and returned in fp32, or wider."""
    grid_h, grid_w = rope_y.shape[0], rope_x.shape[0]
    extra_after = q.shape[1] - extra_before - grid_h * grid_w
    axes = [rope_y[:, None].expand(-1, grid_w, -1, -1), rope_x[None].expand(grid_h, -1, -1, -1)]
    cos, sin = torch.cat(axes, dim=-1).flatten(0, 1).unbind(1)
    # Extra tokens turn by no angle: cheaper than to cut them off q and k and to put them back.
    cos = F.pad(torch.cat([cos, cos], dim=-1), (0, 0, extra_before, extra_after), value=1.0).unsqueeze(1)
    sin = F.pad(torch.cat([-sin, sin], dim=-1), (0, 0, extra_before, extra_after)).unsqueeze(1)
    half = q.shape[3] // 2
    return torch.addcmul(q * cos, q.roll(half, dims=3), sin), torch.addcmul(k * cos, k.roll(half, dims=3), sin)
