"""The mixers in plain PyTorch, as one writes them in a module. No custom kernel.

Every function takes the packed projection [batch, token, 3, head, dim] and returns [batch, token, channel], what the
output projection reads. They compute what our operators compute, in the dtype of the inputs throughout.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.kernels.inputs import Inputs
from jetvit.kernels import balanced_windows

Forward = Callable[[Tensor], Tensor]

# Up to so many tokens a value for every pair of them fits in memory; beyond, the block mask is made by a fused kernel.
_PAIRS_FIT = 20000


def _heads(inputs: Inputs) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """q, k, v [batch, head, token, dim] of a packed projection, q and k rotated as HF DINOv3 does it."""
    cos, sin, extra, rope = inputs.cos, inputs.sin, inputs.problem.extra_tokens, inputs.problem.rope

    def rotate(x: Tensor) -> Tensor:
        prefix, patches = x.split((extra, x.shape[2] - extra), dim=2)
        first, second = patches.chunk(2, dim=-1)
        return torch.cat([prefix, patches * cos + torch.cat([-second, first], dim=-1) * sin], dim=2)

    def split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return (rotate(q), rotate(k), v) if rope else (q, k, v)

    return split


def _merge(out: Tensor) -> Tensor:
    """[batch, head, token, dim] to [batch, token, channel]."""
    return out.transpose(1, 2).flatten(2)


def linear(inputs: Inputs) -> Forward:
    """ReLU linear attention and the generated depthwise convolution of v."""
    heads, problem = _heads(inputs), inputs.problem
    w1, b1, w2, b2 = inputs.w1, inputs.b1, inputs.w2, inputs.b2
    extra, size, grid = problem.extra_tokens, problem.mixer.size, (problem.grid_h, problem.grid_w)

    def forward(qkv: Tensor) -> Tensor:
        q, k, v = heads(qkv)
        q, k = F.relu(q), F.relu(k)
        num = q @ (k.transpose(-2, -1) @ v)
        den = q @ k.sum(dim=2).unsqueeze(-1)
        out = _merge(num / (den + 1e-6))
        values = _merge(v)[:, extra:]
        kernel = F.linear(F.silu(F.linear(values.mean(dim=1), w1, b1)), w2, b2)
        batch, _, channels = values.shape
        image = values.transpose(1, 2).reshape(1, batch * channels, *grid)
        kernel = kernel.reshape(batch * channels, 1, size, size)
        convolved = F.conv2d(image, kernel, padding=size // 2, groups=batch * channels)
        out[:, extra:] += convolved.reshape(batch, channels, -1).transpose(1, 2)
        return out

    return forward


def window(inputs: Inputs, balanced: bool) -> Forward:
    """Partition into windows, SDPA over the windows, put back. Short windows are filled up and masked.

    balanced: with the sides of our operator, else with sides of exactly the window's, which may pad much more.
    """
    heads, problem, scale = _heads(inputs), inputs.problem, inputs.scale
    side, extra, grid_h, grid_w = problem.mixer.size, problem.extra_tokens, problem.grid_h, problem.grid_w
    (count_h, side_h), (count_w, side_w) = (
        balanced_windows(grid, side) if balanced else (-(-grid // side), side) for grid in (grid_h, grid_w)
    )
    pad_h, pad_w = count_h * side_h - grid_h, count_w * side_w - grid_w
    windows, inside = count_h * count_w, side_h * side_w
    mask = None
    if pad_h or pad_w:
        real = F.pad(inputs.qkv.new_ones(grid_h, grid_w, dtype=torch.bool), (0, pad_w, 0, pad_h))
        real = real.reshape(count_h, side_h, count_w, side_w).transpose(1, 2).reshape(windows, inside)
        mask = F.pad(real, (extra, 0), value=True)[:, None, None].expand(-1, 1, inside, -1)

    def cut(x: Tensor) -> Tensor:
        batch, number, _, dim = x.shape
        x = F.pad(x[:, :, extra:].reshape(batch, number, grid_h, grid_w, dim), (0, 0, 0, pad_w, 0, pad_h))
        x = x.reshape(batch, number, count_h, side_h, count_w, side_w, dim)
        return x.permute(0, 2, 4, 1, 3, 5, 6).reshape(batch * windows, number, inside, dim)

    def keys(x: Tensor) -> Tensor:
        shared = x[:, None, :, :extra].expand(-1, windows, -1, -1, -1).flatten(0, 1)
        return torch.cat([shared, cut(x)], dim=2)

    def forward(qkv: Tensor) -> Tensor:
        q, k, v = heads(qkv)
        batch, number, _, dim = q.shape
        out = F.scaled_dot_product_attention(cut(q), keys(k), keys(v), attn_mask=mask, scale=scale)
        out = out.reshape(batch, count_h, count_w, number, side_h, side_w, dim).permute(0, 3, 1, 4, 2, 5, 6)
        out = out.reshape(batch, number, count_h * side_h, count_w * side_w, dim)[:, :, :grid_h, :grid_w]
        first = F.scaled_dot_product_attention(q[:, :, :extra], k, v, scale=scale)
        return _merge(torch.cat([first, out.flatten(2, 3)], dim=2))

    return forward


def flex_window(inputs: Inputs, reorder: bool) -> Forward:
    """FlexAttention with a block mask of the windows; to be compiled.

    reorder: the tokens are first put in the order of the windows, the extra ones last, so that fewer blocks of the mask
    are in use; else they stay row by row.
    """
    heads, problem, scale = _heads(inputs), inputs.problem, inputs.scale
    extra, grid_h, grid_w, tokens = problem.extra_tokens, problem.grid_h, problem.grid_w, problem.tokens
    device = inputs.qkv.device
    (_, side_h), (count_w, side_w) = (balanced_windows(grid, problem.mixer.size) for grid in (grid_h, grid_w))
    y, x = torch.arange(grid_h, device=device)[:, None], torch.arange(grid_w, device=device)
    number = F.pad((y // side_h * count_w + x // side_w).flatten(), (extra, 0), value=-1)  # -1: an extra token
    order = torch.where(number < 0, tokens, number).argsort(stable=True)
    back = order.argsort()
    if reorder:
        number = number[order]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (number[query] == number[key]) | (number[query] < 0) | (number[key] < 0)

    create = create_block_mask
    if tokens > _PAIRS_FIT:
        create = torch.compile(create_block_mask)
    mask = create(sees, None, None, tokens, tokens, device=device.type)

    def forward(qkv: Tensor) -> Tensor:
        q, k, v = heads(qkv)
        if reorder:
            q, k, v = (x[:, :, order] for x in (q, k, v))
        out = flex_attention(q, k, v, block_mask=mask, scale=scale)
        return _merge(out[:, :, back] if reorder else out)

    return forward


def full(inputs: Inputs) -> Forward:
    """Rotation and SDPA over all tokens, with the backend that torch prefers."""
    heads, scale = _heads(inputs), inputs.scale

    def forward(qkv: Tensor) -> Tensor:
        q, k, v = heads(qkv)
        return _merge(F.scaled_dot_product_attention(q, k, v, scale=scale))

    return forward
