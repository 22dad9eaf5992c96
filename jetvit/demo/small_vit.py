"""A small Vision Transformer with weights of its own, that reads the depth of the rooms of `jetvit.demo.scenes`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetvit.models.weights import read_weights

WEIGHTS = Path(__file__).parent / "data" / "small_vit.safetensors"
PATCH_SIZE = 8


class Attention(nn.Module):
    """Full self-attention over [batch, token, dim]."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, num_heads), Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Head(nn.Module):
    """Maps of some blocks, each [B, dim, h, w], → disparity [B, 8·h, 8·w]: every token draws its own patch.

    Disparity is float32 in any autocast.
    """

    def __init__(self, dim: int, maps: int):
        super().__init__()
        self.reduce = nn.Conv2d(maps * dim, dim, 1)
        self.draw = nn.Conv2d(dim, PATCH_SIZE**2, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.draw(F.gelu(self.reduce(torch.cat(maps, 1))))
        return F.pixel_shuffle(x, PATCH_SIZE)[:, 0].float().exp()


class PatchEmbed(nn.Module):
    """[B, 3, H, W] → [B, dim, H / 8, W / 8] by three convolutions: small models learn edges much faster so."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, dim // 4, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(dim // 4, dim // 2, 3, stride=2, padding=1)
        self.proj = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(F.gelu(self.conv2(F.gelu(self.conv1(image)))))


class SmallViT(nn.Module):
    """A plain Vision Transformer that yields disparity: [B, 3, H, W], mean and std 0.5, → [B, H, W], near is large.

    H and W are multiples of 8, the side of a patch. Disparity is positive, and right but for a factor for each image.
    The head reads the blocks in the middle, at three quarters and at the end.
    """

    def __init__(self, depth: int = 8, dim: int = 128, num_heads: int = 2):
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.taps = (depth // 2 - 1, 3 * depth // 4 - 1, depth - 1)
        self.head = Head(dim, len(self.taps))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))

    def features(self, image: Tensor) -> list[Tensor]:
        """The maps that the head reads, each [B, dim, H / 8, W / 8]."""
        x = self.patch_embed(image)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        x = x + sine_cosine(grid, x.shape[-1]).to(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                maps.append(self.norm(x)[:, 1:].transpose(1, 2).unflatten(2, grid))
        return maps


def sine_cosine(grid: tuple[int, int], dim: int) -> Tensor:
    """Positions [h·w, dim]: sines and cosines of y and x at dim / 4 frequencies, one turn to 16 across the image.

    The image spans −1 to 1 whatever its size in pixels, as the rays of a camera do.
    """
    frequency = torch.pi * 16 ** torch.linspace(0, 1, dim // 4)
    y, x = (((torch.arange(side) + 0.5) / side * 2 - 1)[:, None] * frequency for side in grid)
    y, x = y[:, None].expand(*grid, -1), x.expand(*grid, -1)
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], -1).flatten(0, 1)


def load_small_vit(path: Path = WEIGHTS) -> SmallViT:
    """The trained model in eval mode, in float32, by default from the weights in the package.

    `benchmarks/train_small_vit.py` made them; the file's metadata has the steps, the seed and the held-out scores.

    Raises:
        InputError: no such file, or a broken one.
        RuntimeError: the weights are those of another model.
    """
    model = SmallViT()
    model.load_state_dict({name: tensor.float() for name, tensor in read_weights(path).items()})
    return model.eval()
