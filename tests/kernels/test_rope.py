"""`rotate` against HF DINOv3's rotation, on HF DINOv3's own angles."""

from __future__ import annotations

import math

import pytest
import torch

from jetvit.kernels.rope import rotate
from tests.kernels.naive import make_rope, rotated


def test_is_the_rotation_of_hf_dinov3() -> None:
    """The formula of transformers' `modeling_dinov3_vit.py`, on its full [token, head_dim] tables."""
    torch.manual_seed(0)
    grid_h, grid_w, dim, prefix = 5, 3, 16, 2
    inv_freq = 1 / 100.0 ** torch.arange(0, 1, 4 / dim, dtype=torch.float32)
    y = 2 * (torch.arange(0.5, grid_h) / grid_h) - 1
    x = 2 * (torch.arange(0.5, grid_w) / grid_w) - 1
    coords = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * coords[:, :, None] * inv_freq).flatten(1, 2).tile(2)
    # HF works on [batch, head, token, dim].
    q, k = torch.randn(2, 2, 4, prefix + grid_h * grid_w, dim)

    def apply_rotary(t: torch.Tensor) -> torch.Tensor:
        first, patches = t.split((prefix, grid_h * grid_w), dim=-2)
        half = torch.cat((-patches[..., dim // 2 :], patches[..., : dim // 2]), dim=-1)
        return torch.cat((first, patches * angles.cos() + half * angles.sin()), dim=-2)

    axis_y, axis_x = 2 * math.pi * y[:, None] * inv_freq, 2 * math.pi * x[:, None] * inv_freq
    rope_y, rope_x = (torch.stack([axis.cos(), axis.sin()], dim=1) for axis in (axis_y, axis_x))
    for ours, theirs in zip(
        rotate(q.transpose(1, 2), k.transpose(1, 2), rope_y, rope_x, prefix),
        (apply_rotary(q), apply_rotary(k)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_16_bit_tokens_are_rotated_in_fp32_and_extra_tokens_left_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 2 + 12 + 3, 2, 8).to(dtype)
    rope_y, rope_x = make_rope(3, 4, 8)
    for out, x in zip(rotate(q, k, rope_y, rope_x, 2), (q, k), strict=True):
        assert out.dtype == torch.promote_types(dtype, torch.float32)
        step = torch.finfo(out.dtype).eps
        torch.testing.assert_close(out.double(), rotated(x, rope_y, rope_x, 2), rtol=4 * step, atol=4 * step)
        assert torch.equal(out[:, :2], x[:, :2].to(out.dtype))
        assert torch.equal(out[:, 14:], x[:, 14:].to(out.dtype))
