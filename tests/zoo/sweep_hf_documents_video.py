"""The sweep's configurations of transformers: more hierarchies, documents, video and matching of two images."""

from __future__ import annotations

import torch

from tests.zoo.case import Inputs, images
from tests.zoo.sweep_hf import (
    CONSTANT_MASK,
    CROSS,
    DIMS,
    LEARNED_BIAS,
    ONE_ROW,
    PYRAMID,
    RATIO,
    hf,
    of_type,
    resnet,
    video,
)

LAYOUT = DIMS | {"input_size": 64, "vocab_size": 100, "coordinate_size": 6, "shape_size": 4}
NO_BIAS = LAYOUT | {"has_relative_attention_bias": False, "has_spatial_attention_bias": False}


def page() -> Inputs:
    """Two pages without their text."""
    return (), {"pixel_values": images(2, 3, 64, 64)}


DOCUMENTS_VIDEO = (
    hf("PvtV2Model", "PvtV2Config", PYRAMID | {"image_size": 64}, "1 of 2×3", {CROSS: 3}, places=False),
    hf(
        "PvtV2Model",
        "PvtV2Config",
        PYRAMID | {"image_size": 64, "linear_attention": True},
        "",
        {CROSS: 4},
        size=(128, 128),
        name="PvtV2Model linear attention",
    ),
    hf(
        "MobileViTV2Model",
        "MobileViTV2Config",
        {"image_size": 64, "width_multiplier": 0.5, "n_attn_blocks": [1, 1, 1]},
        "",
        {"no product of q and k is what the softmax runs over": 1},
        size=(64, 64),
    ),
    hf(
        "DonutSwinModel",
        "DonutSwinConfig",
        {"image_size": 64, "embed_dim": 16, "depths": [2, 1], "num_heads": [1, 2], "window_size": 4},
        "",
        {LEARNED_BIAS: 2, CONSTANT_MASK: 1},
        size=(64, 64),
    ),
    hf(
        "Swin2SRForImageSuperResolution",
        "Swin2SRConfig",
        {"image_size": 16, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 2], "window_size": 4},
        "",
        {LEARNED_BIAS: 2, CONSTANT_MASK: 1},
        size=(16, 16),
    ),
    hf(
        "SwiftFormerModel",
        "SwiftFormerConfig",
        {"depths": [1, 1, 1, 1], "embed_dims": [16, 16, 16, 32], "image_size": 64},
        "",
        {"the attention weights are used by": 4},
        size=(64, 64),
    ),
    hf(
        "FocalNetModel",
        "FocalNetConfig",
        {"image_size": 64, "embed_dim": 16, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
        "",
        size=(64, 64),
    ),
    hf("LayoutLMv3Model", "LayoutLMv3Config", LAYOUT, "", {LEARNED_BIAS: 2}, inputs=page),
    hf("LayoutLMv3Model", "LayoutLMv3Config", NO_BIAS, "2 of 1+4×4", inputs=page, name="LayoutLMv3Model no bias"),
    hf(
        "LayoutLMv3Model",
        "LayoutLMv3Config",
        NO_BIAS,
        "2 of 5+4×4",
        inputs=lambda: ((), {"pixel_values": images(2, 3, 64, 64), "input_ids": torch.tensor([[2, 5, 6, 3]] * 2)}),
        name="LayoutLMv3Model text",
    ),
    hf(
        "TvpModel",
        "TvpConfig",
        DIMS
        | {
            "backbone_config": resnet("stage4"),
            "vocab_size": 100,
            "max_img_size": 256,
            "visual_prompt_size": 8,
            "num_frames": 2,
        },
        "2 of 14+4×4",
        inputs=lambda: ((torch.tensor([[2, 5, 6, 3]]), images(1, 2, 3, 256, 256)), {}),
        places=False,
    ),
    hf(
        "PeVideoEncoder",
        "PeVideoEncoderConfig",
        DIMS
        | {
            "head_dim": 16,
            "vision_config": of_type(
                "timm_wrapper",
                architecture="vit_pe_core_tiny_patch16_384",
                model_args={"img_size": 64, "depth": 2},
                num_classes=8,
            ),
        },
        "2 of 1+4×4",
        {CROSS: 1, "unknown token grid: it was lost at aten.linalg_vector_norm": 2},
        inputs=video(4, (64, 64)),
        places=False,
    ),
    hf(
        "VideoPrismVisionModel",
        "VideoPrismVisionConfig",
        {
            "image_size": 64,
            "num_frames": 3,
            "tubelet_size": [1, 16, 16],
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "num_spatial_layers": 2,
            "num_temporal_layers": 1,
        },
        "",
        {"aten.tanh.default stands between q·kᵀ and the softmax": 3},
        inputs=video(3, (64, 64)),
        places=False,
    ),
    hf(
        "VideomtForUniversalSegmentation",
        "VideomtConfig",
        RATIO | {"image_size": 64, "num_hidden_layers": 3, "num_blocks": 1, "num_queries": 5, "num_upscale_blocks": 1},
        "2 of 5+4×4, 2 of 10+4×4",
        inputs=video(2, (64, 64)),
        places=False,
    ),
    hf(
        "superglue.SuperGlueAttentionalGNN",
        "SuperGlueConfig",
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "gnn_layers_types": ["self", "cross"],
            "keypoint_encoder_sizes": [16, 32],
        },
        "",
        {ONE_ROW: 1, "cross attention: k comes from another part of the batch": 1},
        inputs=lambda: ((images(2, 24, 32),), {}),
        attention="eager",
        places=False,
    ),
    hf(
        "EfficientLoFTRModel",
        "EfficientLoFTRConfig",
        {
            "stage_num_blocks": [1, 1, 1, 1],
            "out_features": [16, 16, 32, 64],
            "stage_stride": [2, 1, 2, 2],
            "hidden_size": 64,
            "num_attention_layers": 1,
            "num_attention_heads": 8,
            "q_aggregation_kernel_size": 2,
            "q_aggregation_stride": 2,
            "kv_aggregation_kernel_size": 2,
            "kv_aggregation_stride": 2,
        },
        "",
        {"cross attention: k comes from another token sequence than q": 3},
        inputs=lambda: ((images(1, 2, 1, 64, 96),), {}),
        places=False,
    ),
)
