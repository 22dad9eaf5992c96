"""The sweep's configurations of transformers, shrunk through their configurations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from jetvit.models.torchvision_shim import ensure_torchvision
from tests.zoo.case import Inputs, image_inputs, images, randomize
from tests.zoo.sweep import Entry
from tests.zoo.sweep_oracle import Size

SIZE = (64, 96)
DIMS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = DIMS | {"image_size": SIZE, "patch_size": 16}
SQUARE = DIMS | {"image_size": 64, "patch_size": 16}
RATIO = {name: value for name, value in SQUARE.items() if name != "intermediate_size"} | {"mlp_ratio": 2}
INTERPOLATE = {"interpolate_pos_encoding": True}
DETR = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5,
}  # fmt: skip
PYRAMID = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "num_attention_heads": [1, 2, 2, 2]}
HIERA_DET = {
    "hidden_size": 16, "num_attention_heads": 1, "image_size": [128, 128], "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [16, 32, 64, 128], "num_attention_heads_per_stage": [1, 2, 4, 8],
    "window_size_per_stage": [4, 2, 2, 2], "global_attention_blocks": [3],
}  # fmt: skip
SAM = SQUARE | {"mlp_dim": 64, "output_channels": 16, "global_attn_indexes": [1], "window_size": 2}

LOCAL = "the attention is local already"
CROSS = "cross attention"
LEARNED_BIAS = "a learned bias is added to the scores"
INPUT_BIAS = "depends on the input is added to the scores"
CONSTANT_MASK = "a constant mask is added to the scores"
HIDDEN_KEYS = "a boolean mask hides some keys"
NO_MAP = "unknown token grid: no two-dimensional map was flattened into these tokens"
GATHERED = "unknown token grid: it was lost at aten.gather.default"
ONE_ROW = "unknown token grid: the tokens come in one row from an input"


def library() -> Any:
    ensure_torchvision()
    return pytest.importorskip("transformers")


def build(model: str, config: str, options: Mapping[str, Any], attention: str | None) -> nn.Module:
    """A model by its class, with the name of its folder in front where transformers does not export it."""
    transformers = library()
    made = {name: value() if callable(value) else value for name, value in options.items()}
    more = {} if attention is None else {"attn_implementation": attention}
    file, _, of_file = model.partition(".")
    place = import_module(f"transformers.models.{file}.modeling_{file}") if of_file else transformers
    return randomize(getattr(place, of_file or model)(getattr(transformers, config)(**made, **more)))


def config(name: str, **options: Any) -> Callable[[], Any]:
    """An inner configuration, made when the model is built."""
    return lambda: getattr(library(), name)(
        **{key: value() if callable(value) else value for key, value in options.items()}
    )


NOT_CAPTURED = dict.fromkeys(
    ("find", "export without a plan"), "CaptureError: the model reads a value off what it computes from its input"
)
"""The complaints on a model whose shapes depend on values of its inputs: torch.compile alone takes it."""


def hf(
    model: str,
    config_name: str,
    options: Mapping[str, Any],
    found: str,
    refused: Mapping[str, int] | None = None,
    *,
    size: Size = SIZE,
    kwargs: Mapping[str, Any] | None = None,
    inputs: Callable[[], Inputs] | None = None,
    name: str = "",
    attention: str | None = None,
    **more: Any,
) -> Entry:
    """One entry; `name` tells apart entries of one model."""
    return Entry(
        name or model,
        "transformers",
        lambda: build(model, config_name, options, attention),
        inputs or image_inputs(size, **(kwargs or {})),
        found,
        refused or {},
        **more,
    )


def backbone(name: str, **options: Any) -> Callable[[], Any]:
    return config(
        name,
        **(SQUARE | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False} | options),
    )


def resnet(*stages: str) -> Callable[[], Any]:
    """A backbone of four stages that gives the maps of some, by default all but the first."""
    return config(
        "ResNetConfig", embedding_size=16, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=list(stages or ("stage2", "stage3", "stage4")),
    )  # fmt: skip


RTDETR = {
    "backbone_config": resnet(), "encoder_in_channels": [16, 32, 32], "encoder_hidden_dim": 32, "d_model": 32,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "decoder_layers": 2, "num_queries": 5, "decoder_in_channels": [32, 32, 32],
}  # fmt: skip


def swin(**options: Any) -> Callable[[], Any]:
    return config(
        "SwinConfig",
        **(
            {
                "image_size": 64,
                "embed_dim": 16,
                "depths": [1, 1, 1, 1],
                "num_heads": [1, 2, 2, 2],
                "window_size": 2,
                "out_features": ["stage2", "stage3", "stage4"],
            }
            | options
        ),
    )


def dinov3(layers: int, **options: Any) -> Callable[[], Any]:
    """A backbone that gives a map of every layer."""
    return config(
        "DINOv3ViTConfig",
        **(
            VIT
            | {
                "num_hidden_layers": layers,
                "num_register_tokens": 4,
                "out_indices": list(range(1, layers + 1)),
                "reshape_hidden_states": True,
                "apply_layernorm": True,
            }
            | options
        ),
    )


def of_type(model_type: str, **options: Any) -> Callable[[], dict[str, Any]]:
    """An inner configuration as a mapping, made when the model is built, because transformers writes to it."""
    return lambda: {"model_type": model_type, **options}


def video(frames: int, size: Size = (32, 48)) -> Callable[[], Inputs]:
    return lambda: ((images(2, frames, 3, *size),), {})


def patches(count: int, *shape: int, **tensors: torch.Tensor) -> Callable[[], Inputs]:
    """Flattened patches of one image, as the processors of vision language models make them."""
    return lambda: ((images(1, count, *shape)[0],), dict(tensors))


def siglip2() -> Inputs:
    shapes = torch.tensor([[4, 6], [4, 6]])
    return (images(2, 24, 768),), {
        "pixel_attention_mask": torch.ones(2, 24, dtype=torch.long),
        "spatial_shapes": shapes,
    }


GRID = torch.tensor([[1, 4, 6]])
DPT_HEAD = {
    "reassemble_hidden_size": 32,
    "neck_hidden_sizes": [8, 16, 24, 32],
    "fusion_hidden_size": 16,
    "head_hidden_size": 8,
}
ENCODERS = (
    hf("ViTModel", "ViTConfig", VIT, "2 of 1+4×6", name="ViTModel sdpa"),
    hf("ViTModel", "ViTConfig", VIT, "2 of 1+4×6", name="ViTModel eager", attention="eager"),
    hf("DeiTModel", "DeiTConfig", VIT, "2 of 2+4×6"),
    hf(
        "BeitModel",
        "BeitConfig",
        VIT | {"use_relative_position_bias": True},
        "",
        {LEARNED_BIAS: 2},
        name="BeitModel relative bias",
    ),
    hf(
        "BeitModel",
        "BeitConfig",
        SQUARE | {"use_absolute_position_embeddings": True},
        "2 of 1+4×6",
        name="BeitModel absolute positions",
    ),
    hf(
        "Data2VecVisionModel", "Data2VecVisionConfig", SQUARE | {"use_absolute_position_embeddings": True}, "2 of 1+4×6"
    ),
    hf("Dinov2Model", "Dinov2Config", RATIO, "2 of 1+4×6"),
    hf(
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        RATIO | {"num_register_tokens": 4, "image_size": 64},
        "2 of 5+4×6",
    ),
    hf("DINOv3ViTModel", "DINOv3ViTConfig", VIT | {"num_register_tokens": 4}, "2 of 5+4×6"),
    hf(
        "ViTMAEModel",
        "ViTMAEConfig",
        SQUARE | {"mask_ratio": 0.0},
        "",
        {"unknown token grid: it was lost at aten.gather.default (gather)": 2},
        inputs=lambda: ((images(2, 3, 64, 64), images(2, 16)), {}),  # the noise orders the tokens
        places=False,
    ),
    hf("ViTMSNModel", "ViTMSNConfig", VIT, "2 of 1+4×6"),
    hf("IJepaModel", "IJepaConfig", VIT, "2 of 4×6"),
    hf("PixioModel", "PixioConfig", RATIO, "2 of 8+4×6"),
    hf("Tipsv2VisionModel", "Tipsv2VisionConfig", RATIO | {"image_size": 64}, "2 of 2+4×6"),
    hf("RadioModel", "RadioConfig", RATIO | {"mlp_ratio": 2.0, "max_img_size": 128, "patch_dim": 768}, "2 of 10+4×6"),
    hf(
        "Sapiens2Model",
        "Sapiens2Config",
        VIT | {"num_key_value_heads_per_layer": [2, 2], "num_key_value_attention_heads": 2},
        "2 of 9+4×6",
    ),
    hf(
        "Sapiens2Model",
        "Sapiens2Config",
        VIT | {"num_key_value_heads_per_layer": [2, 1], "num_key_value_attention_heads": 1},
        "2 of 9+4×6",
        name="Sapiens2Model grouped queries",
    ),
    hf(
        "SegGptModel",
        "SegGptConfig",
        RATIO
        | {
            "image_size": [128, 64],
            "mlp_dim": 64,
            "pretrain_image_size": 64,
            "merge_index": 0,
            "intermediate_hidden_state_indices": [0, 1],
            "decoder_hidden_size": 8,
        },
        "",
        {"the attention scores are reshaped across queries and keys": 2},
        inputs=lambda: ((images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1), images(2, 3, 64, 64, seed=2)), {}),
        places=False,
    ),
)
