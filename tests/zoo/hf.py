"""Models of transformers, shrunk through their configurations, each with SDPA and with eager attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from jetvit.models.torchvision_shim import ensure_torchvision
from jetvit.versions import installed, numbers
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


def since(release: str, now: str, before: str) -> str:
    """A name that the models of transformers have since a release, or the one that they had before.

    The releases are exact for ViT and DINOv2, and else the first one tested that has the new name.
    """
    here = installed().get("transformers", release)  # without it no model is built
    return now if numbers(here) >= numbers(release) else before


VIT = since("5.9", "layers.{}.attention", "encoder.layer.{}.attention.attention")
DINOV2 = since("5.18", "encoder.layer.{}.attention", "encoder.layer.{}.attention.attention")


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
        VIT,
        inputs=INTERPOLATE,
    ),
    *both(
        "deit",
        lambda kind: model("DeiTModel", "DeiTConfig", kind, **SHAPE),
        VIT,
        inputs=INTERPOLATE,
        extra_before=2,
    ),
    *both(
        "dinov2",
        lambda kind: model("Dinov2Model", "Dinov2Config", kind, **SHAPE),
        DINOV2,
    ),
    *both(
        "dinov2_registers",
        lambda kind: model(
            "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", kind, **SHAPE, num_register_tokens=4
        ),
        DINOV2,
        extra_before=5,
        dynamic="batch",  # it turns the grid into Python numbers
    ),
    *both(
        "dinov3",
        lambda kind: model("DINOv3ViTModel", "DINOv3ViTConfig", kind, **SHAPE, num_register_tokens=4),
        since("5.17", "model.layer.{}.attention", "layer.{}.attention"),
        extra_before=5,
        rope="half",
    ),
    *both(
        "depth_anything",
        depth_anything,
        f"backbone.{DINOV2}",
        depth=4,
        dynamic="batch",  # its head turns the height and width into Python numbers
    ),
    *both(  # its pooling head attends from one probe to all tokens
        "siglip",
        lambda kind: model("SiglipVisionModel", "SiglipVisionConfig", kind, **SHAPE),
        since("5.17", "encoder.layers.{}.self_attn", "vision_model.encoder.layers.{}.self_attn"),
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
