"""A rewritten graph with plain PyTorch in place of our operators, as the paper ran its hybrids. No custom kernel.

A rival implementation shares no code with ours: it pads and masks as the paper's code would, so that the benchmark
compares two implementations. Property tests compare its functions with the operators.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from jetvit.kernels import balanced_windows
from jetvit.kernels.checks import is_absent


def in_plain_pytorch(program: ExportedProgram) -> GraphModule:
    """The graph with `linear`, `window` and `full` in place of our operators; weights are shared."""
    module = program.module()
    assert isinstance(module, GraphModule)
    operators = torch.ops.jetvit
    replaced: dict[object, Callable[..., Tensor]] = {
        operators.linear_attention.default: linear,
        operators.window_attention.default: window,
        operators.full_attention.default: full,
    }
    for node in module.graph.nodes:
        node.target = replaced.get(node.target, node.target)
    module.recompile()
    return module


def linear(
    q: Tensor, k: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    grid_h: int, grid_w: int, extra_before: int, conv_size: int, eps: float, feature_map: str,
) -> Tensor:  # fmt: skip
    """`jetvit::linear_attention` with ReLU and a generated convolution, in the dtype of the inputs throughout."""
    assert feature_map == "relu"
    assert conv_size
    q, k, v = _rotated(q, k, v, rope_y, rope_x, extra_before)
    q, k = F.relu(q), F.relu(k)
    num = q @ (k.transpose(-2, -1) @ v)
    den = q @ k.sum(dim=2).unsqueeze(-1)
    out, values = _merged(num / (den + eps)), _merged(v)
    values = values[:, extra_before : extra_before + grid_h * grid_w]
    kernel = F.linear(F.silu(F.linear(values.mean(dim=1), w1, b1)), w2, b2)
    batch, _, channels = values.shape
    image = values.transpose(1, 2).reshape(1, batch * channels, grid_h, grid_w)
    kernel = kernel.reshape(batch * channels, 1, conv_size, conv_size)
    convolved = F.conv2d(image, kernel, padding=conv_size // 2, groups=batch * channels)
    convolved = convolved.reshape(batch, channels, -1).transpose(1, 2)
    extra_after = out.shape[1] - extra_before - grid_h * grid_w
    out = out + F.pad(convolved, (0, 0, extra_before, extra_after))
    return out.unflatten(2, (v.shape[1], v.shape[3]))


def window(
    q: Tensor, k: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor,
    grid_h: int, grid_w: int, extra_before: int, window_h: int, window_w: int, scale: float,
) -> Tensor:  # fmt: skip
    """`jetvit::window_attention`: cut into windows, SDPA over them, put back; short windows are padded and masked."""
    q, k, v = _rotated(q, k, v, rope_y, rope_x, extra_before)
    batch, heads, tokens, dim = q.shape
    (count_h, side_h), (count_w, side_w) = balanced_windows(grid_h, window_h), balanced_windows(grid_w, window_w)
    pad_h, pad_w = count_h * side_h - grid_h, count_w * side_w - grid_w
    windows, inside = count_h * count_w, side_h * side_w
    sizes = [extra_before, grid_h * grid_w, tokens - extra_before - grid_h * grid_w]

    def cut(grid: Tensor) -> Tensor:
        padded = F.pad(grid.unflatten(2, (grid_h, grid_w)), (0, 0, 0, pad_w, 0, pad_h))
        padded = padded.reshape(batch, heads, count_h, side_h, count_w, side_w, dim)
        return padded.permute(0, 2, 4, 1, 3, 5, 6).reshape(batch * windows, heads, inside, dim)

    def keys(x: Tensor) -> Tensor:
        before, grid, after = x.split(sizes, dim=2)
        extra = torch.cat([before, after], dim=2)
        shared = extra[:, None].expand(-1, windows, -1, -1, -1).flatten(0, 1)
        return torch.cat([shared, cut(grid)], dim=2)

    mask = None
    if pad_h or pad_w:
        real = F.pad(q.new_ones(grid_h, grid_w, dtype=torch.bool), (0, pad_w, 0, pad_h))
        real = real.reshape(count_h, side_h, count_w, side_w).transpose(1, 2).reshape(windows, inside)
        real = F.pad(real, (sizes[0] + sizes[2], 0), value=True)
        mask = real.repeat(batch, 1)[:, None, None].expand(-1, 1, inside, -1)
    before, grid, after = q.split(sizes, dim=2)
    out = F.scaled_dot_product_attention(cut(grid), keys(k), keys(v), attn_mask=mask, scale=scale)
    out = out.reshape(batch, count_h, count_w, heads, side_h, side_w, dim).permute(0, 3, 1, 4, 2, 5, 6)
    out = out.reshape(batch, heads, count_h * side_h, count_w * side_w, dim)[:, :, :grid_h, :grid_w].flatten(2, 3)
    extra = F.scaled_dot_product_attention(torch.cat([before, after], dim=2), k, v, scale=scale)
    first, last = extra.split([sizes[0], sizes[2]], dim=2)
    return torch.cat([first, out, last], dim=2).transpose(1, 2).contiguous()


def full(
    q: Tensor, k: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor,
    grid_h: int, grid_w: int, extra_before: int, scale: float,
) -> Tensor:  # fmt: skip
    """`jetvit::full_attention`: rotation, then SDPA by the backend that torch prefers."""
    q, k, v = _rotated(q, k, v, rope_y, rope_x, extra_before)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).contiguous()


def _rotated(
    q: Tensor, k: Tensor, v: Tensor, rope_y: Tensor, rope_x: Tensor, extra_before: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [batch, head, token, dim] of those [batch, token, head, dim]; q and k rotated as HF DINOv3 does it."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if is_absent(rope_y):
        return q, k, v
    grid_h, grid_w = rope_y.shape[0], rope_x.shape[0]
    tables = [rope_y[:, None].expand(-1, grid_w, -1, -1), rope_x[None].expand(grid_h, -1, -1, -1)]
    cos, sin = torch.cat(tables, dim=-1).flatten(0, 1).tile(2).to(q.dtype).unbind(1)
    sizes = [extra_before, grid_h * grid_w, q.shape[2] - extra_before - grid_h * grid_w]

    def rotate(x: Tensor) -> Tensor:
        before, grid, after = x.split(sizes, dim=2)
        first, second = grid.chunk(2, dim=-1)
        return torch.cat([before, grid * cos + torch.cat([-second, first], dim=-1) * sin, after], dim=2)

    return rotate(q), rotate(k), v


def _merged(x: Tensor) -> Tensor:
    """[batch, head, token, dim] to [batch, token, channel]."""
    return x.transpose(1, 2).flatten(2)
