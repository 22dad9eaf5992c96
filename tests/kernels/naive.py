"""What the operators mean, written a second time in fp64 loops and masks, and the inputs that the laws are tried on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ABSENT = torch.empty(0)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "packed", "head_first", "same_image"]


def make_qkv(layout: str, batch: int, tokens: int, heads: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v [batch, token, head, dim] with the strides that models give them."""
    if layout == "packed":
        return list(torch.randn(batch, tokens, 3, heads, dim, dtype=dtype).unbind(2))
    if layout == "head_first":
        return [torch.randn(batch, heads, tokens, dim, dtype=dtype).transpose(1, 2) for _ in range(3)]
    if layout == "same_image":
        return [torch.randn(1, tokens, heads, dim, dtype=dtype).expand(batch, -1, -1, -1) for _ in range(3)]
    return [torch.randn(batch, tokens, heads, dim, dtype=dtype) for _ in range(3)]


def make_rope(grid_h: int, grid_w: int, dim: int) -> tuple[Tensor, Tensor]:
    """Tables of random angles, so that no symmetry of real ones can hide a fault."""
    angles_y, angles_x = 3 * torch.randn(grid_h, dim // 4), 3 * torch.randn(grid_w, dim // 4)
    return torch.stack([angles_y.cos(), angles_y.sin()], 1), torch.stack([angles_x.cos(), angles_x.sin()], 1)


def cells(grid_h: int, grid_w: int, extra_before: int) -> Iterator[tuple[int, int, int]]:
    """(token, y, x) of every grid token."""
    for y in range(grid_h):
        for x in range(grid_w):
            yield extra_before + y * grid_w + x, y, x


def rotated(x: Tensor, rope_y: Tensor, rope_x: Tensor, extra_before: int) -> Tensor:
    """HF DINOv3's `apply_rotary_pos_emb` on the grid tokens, a token at a time."""
    x, rope_y, rope_x = x.double().clone(), rope_y.double(), rope_x.double()
    half = x.shape[-1] // 2
    for token, row, column in cells(len(rope_y), len(rope_x), extra_before):
        cos, sin = torch.cat([rope_y[row], rope_x[column]], dim=-1).tile(2)
        vector = x[:, token]
        x[:, token] = vector * cos + torch.cat([-vector[..., half:], vector[..., :half]], dim=-1) * sin
    return x


def window_of(size: int, window: int) -> list[int]:
    """The number of the window that each token of an axis is in."""
    count = next(n for n in range(1, size + 1) if n * window >= size)
    side = next(s for s in range(1, size + 1) if s * count >= size)
    return [token // side for token in range(size)]


def window_mask(tokens: int, grid_h: int, grid_w: int, extra_before: int, window_h: int, window_w: int) -> Tensor:
    """[query, key], True where the query sees the key."""
    rows, columns = window_of(grid_h, window_h), window_of(grid_w, window_w)
    window: list[tuple[int, int] | None] = [None] * tokens
    for token, y, x in cells(grid_h, grid_w, extra_before):
        window[token] = (rows[y], columns[x])
    return torch.tensor([[None in (q, k) or q == k for k in window] for q in window])


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(q·kᵀ·scale)·v over the keys where `mask` is True, in fp64."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * scale
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v.double())


def features(q: Tensor, k: Tensor, feature_map: str) -> tuple[Tensor, Tensor]:
    """f(q) and f(k) [batch, token, head, feature] in fp64, from q and k that are rotated already."""
    q, k = q.double(), k.double()
    if feature_map == "hedgehog":
        exponents = [torch.cat([x.exp() / x.exp().sum(-1, keepdim=True) for x in (y, -y)], -1) for y in (q, k)]
        return exponents[0], exponents[1]
    if feature_map == "relu_centred":
        k = k - sum(k.unbind(1)).unsqueeze(1) / k.shape[1]
    return q.clamp(min=0), k.clamp(min=0)


def feature_attention(q: Tensor, k: Tensor, v: Tensor, eps: float, feature_map: str) -> tuple[Tensor, Tensor]:
    """num / (den + eps) and den + eps [batch, token, head, 1] of linear attention by its N×N weights, in fp64."""
    weights = torch.einsum("bqhd,bkhd->bqhk", *features(q, k, feature_map))
    den = weights.sum(-1, keepdim=True) + eps
    return torch.einsum("bqhk,bkhd->bqhd", weights, v.double()) / den, den


def convolution(v: Tensor, grid_h: int, grid_w: int, extra_before: int, kernel: Tensor) -> Tensor:
    """Depthwise cross-correlation of v's grid tokens with kernel [batch, head, dim, K, K]; zero on extra tokens."""
    out = torch.zeros(v.shape, dtype=torch.float64)
    size = kernel.shape[-1]
    for token, y, x in cells(grid_h, grid_w, extra_before):
        for i in range(size):
            for j in range(size):
                row, column = y + i - size // 2, x + j - size // 2
                if 0 <= row < grid_h and 0 <= column < grid_w:
                    tap = kernel[..., i, j].double()
                    out[:, token] += v[:, extra_before + row * grid_w + column].double() * tap
    return out


def generated_kernel(mean: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, size: int) -> Tensor:
    """The kernel [batch, head, dim, K, K] that the MLP makes of mean v [batch, head, dim], a row of w2 at a time."""
    batch, heads, dim = mean.shape
    hidden = mean.reshape(batch, -1) @ w1.double().T + b1.double()
    hidden = hidden / (1 + torch.exp(-hidden))
    kernel = torch.empty(batch, heads, dim, size, size, dtype=torch.float64)
    rows = iter(zip(w2.double(), b2.double(), strict=True))
    for head in range(heads):
        for channel in range(dim):
            for i in range(size):
                for j in range(size):
                    weight, bias = next(rows)
                    kernel[:, head, channel, i, j] = hidden @ weight + bias
    return kernel
