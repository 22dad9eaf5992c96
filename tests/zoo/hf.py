"""Models of transformers, shrunk through their configurations, each with SDPA and with eager attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from jetvit.torchvision_shim import ensure_torchvision
from tests.zoo.case import Case, grid_of, image_inputs, randomize

PATCH = 8
SIZE, OBLONG = (32, 48), (48, 24)  # away from the square size of the configuration, so that positions are interpolated
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": PATCH,
}


def model(class_name: str, config_name: str, implementation: str, **options: Any) -> nn.Module:
    """`class_name(config_name(**options))` with seeded weights and the given attention implementation."""
    ensure_torchvision()
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, config_name)(**options, attn_implementation=implementation)
    return randomize(getattr(transformers, class_name)(config))


def depth_anything(implementation: str) -> nn.Module:
    """Depth Anything V2: a DINOv2 backbone read at four layers, and a DPT head."""
    ensure_torchvision()
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        **(SHAPE | {"num_hidden_layers": 4}),
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        attn_implementation=implementation,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=PATCH,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
    )
    return randomize(transformers.DepthAnythingForDepthEstimation(config))


def both(name: str, build: Callable[[str], nn.Module], names: str, depth: int = 2, **changes: Any) -> list[Case]:
    """The SDPA and the eager case of one model; `names` has one `{}` for the layer's index."""
    fields = {
        "inputs": image_inputs(SIZE),
        "size": SIZE,
        "oblong": OBLONG,
        "sites": depth,
        "num_heads": 2,
        "head_dim": 16,
        "grid": grid_of(PATCH),
        "extra_before": 1,
        "names": tuple(names.format(layer) for layer in range(depth)),
    }
    return [
        Case(f"hf_{name}_{kind}", lambda kind=kind: build(kind), **(fields | changes)) for kind in ("sdpa", "eager")
    ]


INTERPOLATE = image_inputs(SIZE, interpolate_pos_encoding=True)

CASES = (
    *both(
        "vit",
        lambda kind: model("ViTModel", "ViTConfig", kind, **SHAPE),
        "layers.{}.attention",
        inputs=INTERPOLATE,
    ),
    *both(
        "deit",
        lambda kind: model("DeiTModel", "DeiTConfig", kind, **SHAPE),
        "layers.{}.attention",
        inputs=INTERPOLATE,
        extra_before=2,
    ),
    *both(
        "dinov2",
        lambda kind: model("Dinov2Model", "Dinov2Config", kind, **SHAPE),
        "encoder.layer.{}.attention",
    ),
    *both(
        "dinov2_registers",
        lambda kind: model(
            "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", kind, **SHAPE, num_register_tokens=4
        ),
        "encoder.layer.{}.attention",
        extra_before=5,
        dynamic="batch",  # it turns the grid into Python numbers
    ),
    *both(
        "dinov3",
        lambda kind: model("DINOv3ViTModel", "DINOv3ViTConfig", kind, **SHAPE, num_register_tokens=4),
        "model.layer.{}.attention",
        extra_before=5,
        rope="half",
    ),
    *both(
        "depth_anything",
        depth_anything,
        "backbone.encoder.layer.{}.attention",
        depth=4,
        dynamic="batch",  # its head turns the height and width into Python numbers
    ),
    *both(  # its pooling head attends from one probe to all tokens
        "siglip",
        lambda kind: model("SiglipVisionModel", "SiglipVisionConfig", kind, **SHAPE),
        "encoder.layers.{}.self_attn",
        inputs=INTERPOLATE,
        extra_before=0,
        rejections=("cross",),
    ),
    *both(
        "yolos",
        lambda kind: model(
            "YolosModel", "YolosConfig", kind, **(SHAPE | {"image_size": [32, 32]}), num_detection_tokens=5
        ),
        "encoder.layer.{}.attention.attention",
        extra_after=5,
    ),
)
