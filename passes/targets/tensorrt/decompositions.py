"""The operators of jetvit in the ATen forms that TensorRT converts and fuses, with the meaning of their references.

They differ from the references where TensorRT does: every attention is one SDPA over [batch, head, token, dim], which
becomes one attention layer; there are no tensors of length 0, where it is known that no extra tokens stand before or
after the grid; a kernel that is made from the image is a sum of shifted products, because a convolution has its weights
in the engine; sizes are cut by slices, because the split converter takes constant sizes alone. All work at fixed and at
symbolic sizes. Casts are the references' own: sums of linear attention are fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jetvit.kernels.checks import is_absent
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS, convolve_by_taps
from jetvit.kernels.rope import rotate
from jetvit.kernels.window_attention.reference import attend, join, masked_windows, sliced_windows


def full_attention(
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
    """`jetvit::full_attention` as one SDPA."""
    q, k = _rotated(q, k, rope_y, rope_x, extra_before)
    return attend(q, k, v, None, scale).contiguous()


def window_attention(
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
    """`jetvit::window_attention` as one batched SDPA for each kind of window (full, short last row, column, corner).

    With a symbolic grid the windows are gathered by index instead, and short ones masked, by one SDPA.
    """
    q, k = _rotated(q, k, rope_y, rope_x, extra_before)
    place = _Place(q, grid_h, grid_w, extra_before)
    extra_k, extra_v = place.extra(k), place.extra(v)
    static = isinstance(grid_h, int) and isinstance(grid_w, int)
    attend_windows = sliced_windows if static else masked_windows
    grid = attend_windows(place.grid(q), place.grid(k), place.grid(v), extra_k, extra_v, window_h, window_w, scale)
    extra_q = place.extra(q)
    extra = None if extra_q is None else attend(extra_q, k, v, None, scale)
    return place.join(grid.flatten(1, 2), extra).contiguous()


def linear_attention(
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
    """`jetvit::linear_attention` as two matrix products over all tokens; the convolution as such where it is fixed."""
    dtype = q.dtype
    q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
    q, k = _rotated(q, k, rope_y, rope_x, extra_before)
    q, k = (x.transpose(1, 2) for x in FEATURE_MAPS[feature_map](q, k))
    num = q @ (k.transpose(-1, -2) @ v.transpose(1, 2))
    # A sum of products and no matrix product: TensorRT fuses it with the division.
    den = (q * k.sum(dim=2, keepdim=True)).sum(dim=-1, keepdim=True)
    out = (num / (den + eps)).transpose(1, 2)
    if conv_size > 0:
        place = _Place(q.transpose(1, 2), grid_h, grid_w, extra_before)
        v_grid = place.grid(v).flatten(3)
        w1, b1, w2, b2 = (x.to(v.dtype) for x in (w1, b1, w2, b2))
        if is_absent(w1):
            convolved = _convolve(v_grid, b2, conv_size)
        else:
            mean = v_grid.mean(dim=(1, 2))
            kernel = F.linear(F.silu(F.linear(mean, w1, b1)), w2, b2)
            convolved = convolve_by_taps(v_grid, kernel.unflatten(1, (mean.shape[1], conv_size, conv_size)))
        grid = place.grid(out).flatten(1, 2) + convolved.flatten(1, 2).unflatten(2, out.shape[2:])
        out = place.join(grid, place.extra(out))
    return out.to(dtype).contiguous()


class _Place:
    """The place of the grid and of the extra tokens among the tokens of x [batch, token, head, dim].

    `extra_after` is 0 where that can be known before it runs; a symbolic number of tokens may hide it.
    """

    def __init__(self, x: Tensor, grid_h: int, grid_w: int, extra_before: int):
        self.grid_h, self.grid_w, self.before = grid_h, grid_w, extra_before
        after = x.shape[1] - extra_before - grid_h * grid_w
        self.after = 0 if statically_known_true(after == 0) else after

    def grid(self, x: Tensor) -> Tensor:
        """The grid tokens as [batch, grid_h, grid_w, head, dim]."""
        stop = self.before + self.grid_h * self.grid_w
        whole = isinstance(self.after, int) and self.before + self.after == 0
        return (x if whole else x[:, self.before : stop]).unflatten(1, (self.grid_h, self.grid_w))

    def extra(self, x: Tensor) -> Tensor | None:
        """The extra tokens, those before the grid first; None if it is known that there are none."""
        parts = []
        if self.before > 0:
            parts.append(x[:, : self.before])
        if not isinstance(self.after, int) or self.after > 0:
            parts.append(x[:, self.before + self.grid_h * self.grid_w :])
        return join(parts, dim=1) if parts else None

    def join(self, grid: Tensor, extra: Tensor | None) -> Tensor:
        """The grid tokens [batch, token, head, dim] with the extra ones around them again."""
        if extra is None:
            return grid
        if isinstance(self.after, int) and self.after == 0:
            return torch.cat([extra, grid], dim=1)
        if self.before == 0:
            return torch.cat([grid, extra], dim=1)
        return torch.cat([extra[:, : self.before], grid, extra[:, self.before :]], dim=1)


def _rotated(q: Tensor, k: Tensor, rope_y: Tensor, rope_x: Tensor, extra_before: int) -> tuple[Tensor, Tensor]:
    """q and k with the rotary embedding, in their own dtype; rotated in fp32."""
    if is_absent(rope_y):
        return q, k
    dtype = q.dtype
    q, k = rotate(q, k, rope_y, rope_x, extra_before)
    return q.to(dtype), k.to(dtype)


def _convolve(x: Tensor, kernel: Tensor, size: int) -> Tensor:
    """Depthwise cross-correlation of x [batch, height, width, channel] with one kernel [channel·K·K] of every image."""
    channels = x.shape[3]
    x = x.permute(0, 3, 1, 2).contiguous()
    out = F.conv2d(x, kernel.reshape(channels, 1, size, size), padding=size // 2, groups=channels)
    return out.permute(0, 2, 3, 1)
