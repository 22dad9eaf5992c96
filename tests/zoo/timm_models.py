"""Models of timm and torchvision, shrunk through their arguments, with fused (SDPA) and unfused attention."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from jetvit.models.torchvision_shim import ensure_torchvision
from tests.zoo.case import Case, grid_of, image_inputs, randomize

PATCH = 8
SIZE, OBLONG = (32, 48), (48, 24)
SHAPE = {"patch_size": PATCH, "img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
DYNAMIC = SHAPE | {"dynamic_img_size": True}


def model(timm_name: str, fused: bool, **options: Any) -> nn.Module:
    ensure_torchvision()
    network = pytest.importorskip("timm").create_model(timm_name, **options)
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return randomize(network)


def both(name: str, timm_name: str, options: dict[str, Any], **changes: Any) -> list[Case]:
    """The fused and the unfused case of one model."""
    fields = {
        "inputs": image_inputs(SIZE),
        "size": SIZE,
        "oblong": OBLONG,
        "sites": 2,
        "num_heads": 2,
        "head_dim": 16,
        "grid": grid_of(PATCH),
        "extra_before": 1,
        "names": ("blocks.0.attn", "blocks.1.attn"),
    }
    return [
        Case(f"timm_{name}_{kind}", lambda fused=fused: model(timm_name, fused, **options), **(fields | changes))
        for kind, fused in (("fused", True), ("unfused", False))
    ]


def torchvision_vit() -> nn.Module:
    ensure_torchvision()
    transformer = pytest.importorskip("torchvision").models.vision_transformer.VisionTransformer
    network = transformer(
        image_size=32, patch_size=PATCH, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    return randomize(network)


CASES = (
    *both("vit", "vit_tiny_patch16_224", DYNAMIC),
    *both("vit_qk_norm", "vit_tiny_patch16_224", DYNAMIC | {"qk_norm": True}),
    *both("dinov2_registers", "vit_small_patch14_reg4_dinov2", DYNAMIC, extra_before=5),
    # its rotary embedding turns the grid into Python numbers
    *both("dinov3", "vit_small_patch16_dinov3", DYNAMIC, extra_before=5, rope="half", dynamic="batch"),
    *both("dinov3_qkv_bias", "vit_small_patch16_dinov3_qkvb", DYNAMIC, extra_before=5, rope="half", dynamic="batch"),
    *both("eva02", "eva02_tiny_patch14_224", DYNAMIC | {"ref_feat_shape": (4, 4)}, rope="interleaved"),
    Case(
        "torchvision_vit",
        torchvision_vit,
        inputs=image_inputs((32, 32)),
        size=(32, 32),
        oblong=None,
        sites=2,
        num_heads=2,
        head_dim=16,
        grid=grid_of(PATCH),
        extra_before=1,
        names=tuple(f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(2)),
        dynamic="batch",
    ),
)
