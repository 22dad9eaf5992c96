"""The operators of jetvit in the ATen forms that TensorRT converts and fuses, with the meaning of their references.

They differ from the references where TensorRT does: every attention is one SDPA over [batch, head, token, dim], which
becomes one attention layer; there are no tensors of length 0, where it is known that no extra tokens stand before or
after the grid; a kernel that is made from the image is a sum of shifted products, because a convolution has its weights
in the engine; sizes are cut by slices, because the split converter takes constant sizes alone. All work at fixed and at
symbolic sizes. Casts are the references' own: sums of linear attention are fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from jetvit.kernels.checks import is_absent
from jetvit.kernels.linear_attention.reference import FEATURE_MAPS, convolve_by_taps
from jetvit.kernels.rope import rotate
from jetvit.kernels.window_attention.windows import balanced_windows


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
    return _attend(q, k, v, None, scale).contiguous()


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
    attend = _sliced_windows if static else _masked_windows
    grid = attend(place.grid(q), place.grid(k), place.grid(v), extra_k, extra_v, window_h, window_w, scale)
    extra_q = place.extra(q)
    extra = None if extra_q is None else _attend(extra_q, k, v, None, scale)
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
    """Where the grid and the extra tokens stand among the tokens of x [batch, token, head, dim].

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
        return _join(parts, dim=1) if parts else None

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


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax attention of [batch, token, head, dim]; `mask` [batch, 1, 1, key] is True where a key takes part."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def _attend_windows(
    q: Tensor, k: Tensor, v: Tensor, extra_k: Tensor | None, extra_v: Tensor | None, mask: Tensor | None, scale: float
) -> Tensor:
    """Attention of windows [batch, window, token, head, dim] to their keys and the extra [batch, token, head, dim]."""
    batch, windows = q.shape[:2]
    if extra_k is not None and extra_v is not None:
        k = torch.cat([k, extra_k.unsqueeze(1).expand(-1, windows, -1, -1, -1)], dim=2)
        v = torch.cat([v, extra_v.unsqueeze(1).expand(-1, windows, -1, -1, -1)], dim=2)
    out = _attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask, scale)
    return out.unflatten(0, (batch, windows))


def _sliced_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    window_h: int,
    window_w: int,
    scale: float,
) -> Tensor:
    """Attention of q, k, v [batch, grid_h, grid_w, head, dim] in windows, those of one shape in one SDPA."""
    rows = []
    for top, height, side_h in _runs(q.shape[1], window_h):
        row = []
        for left, width, side_w in _runs(q.shape[2], window_w):
            parts = [_cut(_cut(x, 1, top, height), 2, left, width) for x in (q, k, v)]
            own_q, own_k, own_v = (_to_windows(part, side_h, side_w) for part in parts)
            out = _attend_windows(own_q, own_k, own_v, extra_k, extra_v, None, scale)
            row.append(_to_grid(out, parts[0].shape, side_h, side_w))
        rows.append(_join(row, dim=2))
    return _join(rows, dim=1)


def _masked_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    window_h: int,
    window_w: int,
    scale: float,
) -> Tensor:
    """The same by one graph for every grid: tokens are gathered by index, short windows filled up and masked."""
    grid_h, grid_w = q.shape[1:3]
    (count_h, side_h), (count_w, side_w) = balanced_windows(grid_h, window_h), balanced_windows(grid_w, window_w)
    y = torch.arange(count_h * side_h, device=q.device).unflatten(0, (count_h, 1, side_h, 1))
    x = torch.arange(count_w * side_w, device=q.device).unflatten(0, (1, count_w, 1, side_w))
    token = (y.clamp(max=grid_h - 1) * grid_w + x.clamp(max=grid_w - 1)).flatten(2).flatten(0, 1)
    mask = torch.logical_and(y < grid_h, x < grid_w).flatten(2).flatten(0, 1)
    if extra_k is not None:
        mask = torch.cat([mask, mask.new_ones(()).expand(mask.shape[0], extra_k.shape[1])], dim=1)
    mask = mask.unsqueeze(0).expand(q.shape[0], -1, -1).flatten(0, 1)[:, None, None]
    own_q, own_k, own_v = (part.flatten(1, 2)[:, token] for part in (q, k, v))
    out = _attend_windows(own_q, own_k, own_v, extra_k, extra_v, mask, scale)
    y = torch.arange(grid_h, device=q.device)[:, None]
    x = torch.arange(grid_w, device=q.device)
    row, column = y // side_h, x // side_w
    # No remainders: exporters to ONNX take no symbolic divisor there.
    place = ((row * count_w + column) * side_h + y - row * side_h) * side_w + x - column * side_w
    return out.flatten(1, 2)[:, place]


def _runs(size: int, window: int) -> Iterator[tuple[int, int, int]]:
    """The stretches of an axis in which all windows have one side: (first token, tokens, side)."""
    count, side = balanced_windows(size, window)
    last = size - (count - 1) * side
    if last == side:
        yield 0, size, side
        return
    if count > 1:
        yield 0, size - last, side
    yield size - last, last, last


def _to_windows(x: Tensor, side_h: int, side_w: int) -> Tensor:
    """[batch, height, width, head, dim] to [batch, window, token, head, dim]."""
    batch, height, width, heads, dim = x.shape
    x = x.reshape(batch, height // side_h, side_h, width // side_w, side_w, heads, dim).transpose(2, 3)
    return x.reshape(batch, (height // side_h) * (width // side_w), side_h * side_w, heads, dim)


def _to_grid(x: Tensor, shape: torch.Size, side_h: int, side_w: int) -> Tensor:
    """The inverse of `_to_windows`, to [batch, height, width, head, dim] = `shape`."""
    batch, height, width, heads, dim = shape
    x = x.reshape(batch, height // side_h, width // side_w, side_h, side_w, heads, dim)
    return x.transpose(2, 3).reshape(shape)


def _convolve(x: Tensor, kernel: Tensor, size: int) -> Tensor:
    """Depthwise cross-correlation of x [batch, height, width, channel] with one kernel [channel·K·K] of every image."""
    channels = x.shape[3]
    x = x.permute(0, 3, 1, 2).contiguous()
    out = F.conv2d(x, kernel.reshape(channels, 1, size, size), padding=size // 2, groups=channels)
    return out.permute(0, 2, 3, 1)


def _cut(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    return x if length == x.shape[dim] else x.narrow(dim, start, length)


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
