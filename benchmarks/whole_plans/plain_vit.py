"""A Vision Transformer of any size with random weights, for timings and tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetvit.demo.small_vit import Attention

PATCH_SIZE = 16


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainViT(nn.Module):
    """A Vision Transformer: [B, 3, H, W], in patches of 16 pixels, → [B, extra_tokens + h·w, dim]."""

    def __init__(self, depth: int = 6, dim: int = 192, num_heads: int = 3, extra_tokens: int = 1):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, PATCH_SIZE, PATCH_SIZE)
        self.extra_tokens = nn.Parameter(torch.zeros(1, extra_tokens, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, dim, 14, 14) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        x = x + F.interpolate(self.pos_embed, size=x.shape[-2:], mode="bilinear")
        tokens = x.flatten(2).transpose(1, 2)
        return self.norm(self.blocks(torch.cat([self.extra_tokens.expand(len(tokens), -1, -1), tokens], dim=1)))
