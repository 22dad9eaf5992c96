"""The sweep's configurations of transformers: more of depth and segmentation."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.case import Inputs, images
from tests.zoo.sweep_hf import (
    CROSS,
    DETR,
    DIMS,
    INPUT_BIAS,
    LEARNED_BIAS,
    LOCAL,
    NO_MAP,
    RATIO,
    SAM,
    SQUARE,
    backbone,
    config,
    dinov3,
    hf,
    of_type,
    swin,
)

ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]
PROMPTED = {
    "prompt_encoder_config": lambda: {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
    "mask_decoder_config": lambda: {
        "hidden_size": 32,
        "mlp_dim": 64,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 32,
    },
}
NO_POSITIONS: dict[str, Any] = SAM | {"use_rel_pos": False}
"""Of SAM, whose learned relative positions keep an attention from being rewritten."""


def pointed_at() -> Inputs:
    """An image and a point in it."""
    return (images(1, 3, 64, 64), torch.tensor([[[[10.0, 20.0]]]]), torch.ones(1, 1, 1, dtype=torch.int)), {}


SEGMENTATION = (
    hf(
        "CHMv2ForDepthEstimation",
        "CHMv2Config",
        {
            "backbone_config": dinov3(4, return_class_token=True),
            "post_process_channels": [8, 8, 8, 8],
            "fusion_hidden_size": 16,
            "head_hidden_size": 8,
            "number_output_channels": 16,
        },
        "4 of 5+4×6",
    ),
    hf(
        "Tipsv2DptForDepthEstimation",
        "Tipsv2DptConfig",
        {
            "backbone_config": config(
                "Tipsv2VisionConfig",
                **(RATIO | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}),
            ),
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 16,
            "reassemble_factors": [4, 2, 1, 0.5],
            "num_depth_bins": 8,
        },
        "4 of 2+4×6",
    ),
    hf(
        "ZoeDepthForDepthEstimation",
        "ZoeDepthConfig",
        {
            "neck_hidden_sizes": [16] * 4,
            "fusion_hidden_size": 16,
            "bottleneck_features": 16,
            "num_relative_features": 8,
            "bin_embedding_dim": 8,
            "num_attractors": [4, 2, 2, 1],
            "bin_configurations": [{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
            "backbone_config": backbone("BeitConfig", use_relative_position_bias=True),
        },
        "",
        {LEARNED_BIAS: 4},
        size=(64, 64),
    ),
    hf(
        "DepthProForDepthEstimation",
        "DepthProConfig",
        {
            "patch_size": 64,
            "fusion_hidden_size": 16,
            "intermediate_hook_ids": [1, 0],
            "intermediate_feature_dims": [16, 16],
            "scaled_images_feature_dims": [16, 16, 16],
            "use_fov_model": True,
        }
        | {
            f"{part}_model_config": of_type("dinov2", **RATIO | {"image_size": 64})
            for part in ("image", "patch", "fov")
        },
        "6 of 1+4×4",
        size=(256, 256),
        places=False,
    ),
    hf(
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        {
            "backbone_config": config(
                "BeitConfig",
                **(
                    SQUARE
                    | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "use_absolute_position_embeddings": True}
                ),
            ),
            "hidden_size": 16,
            "auxiliary_in_channels": 32,
            "auxiliary_channels": 8,
        },
        "4 of 1+4×4",
        size=(64, 64),
    ),
    hf(
        "VitPoseBackbone",
        "VitPoseBackboneConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "mlp_ratio": 2,
            "image_size": [64, 96],
            "patch_size": [16, 16],
            "num_experts": 2,
            "part_features": 8,
        },
        "2 of 4×6",
        inputs=lambda: ((images(2, 3, 64, 96), torch.tensor([0, 1])), {}),
        name="VitPoseBackbone experts",
    ),
    hf(
        "CLIPSegForImageSegmentation",
        "CLIPSegConfig",
        {
            "vision_config": lambda: SQUARE | {"num_hidden_layers": 3},
            "text_config": lambda: DIMS | {"vocab_size": 100, "max_position_embeddings": 8},
            "projection_dim": 16,
            "extract_layers": [0, 1, 2],
            "reduce_dim": 16,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
        },
        "6 of 1+4×4",
        inputs=lambda: ((), {"pixel_values": images(1, 3, 64, 64), "conditional_embeddings": images(1, 16)}),
        places=False,
    ),
    hf(
        "SamHQVisionModel",
        "SamHQVisionConfig",
        NO_POSITIONS | {"num_pos_feats": 16},
        "1 of 4×4",
        {LOCAL: 1},
        size=(64, 64),
        name="SamHQVisionModel no relative positions",
    ),
    hf(
        "SamHQVisionModel",
        "SamHQVisionConfig",
        SAM | {"num_pos_feats": 16},
        "",
        {INPUT_BIAS: 2},
        size=(64, 64),
        name="SamHQVisionModel relative positions",
    ),
    hf(
        "slanext.SLANeXtBackbone",
        "SLANeXtConfig",
        {"vision_config": lambda: dict(NO_POSITIONS), "post_conv_in_channels": 16, "post_conv_out_channels": 16},
        "1 of 4×4",
        {LOCAL: 1},
        size=(64, 64),
    ),
    hf(
        "pp_formulanet.PPFormulaNetVisionModel",
        "PPFormulaNetVisionConfig",
        NO_POSITIONS
        | {
            "post_conv_in_channels": 16,
            "post_conv_out_channels": 16,
            "post_conv_mid_channels": 16,
            "decoder_hidden_size": 16,
        },
        "1 of 4×4",
        {LOCAL: 1},
        size=(64, 64),
    ),
    hf(
        "SamModel",
        "SamConfig",
        PROMPTED | {"vision_config": lambda: NO_POSITIONS | {"output_channels": 32, "num_pos_feats": 16}},
        "1 of 4×4",
        {LOCAL: 1, NO_MAP: 2, CROSS: 5},
        inputs=pointed_at,
        places=False,
    ),
    hf(
        "Sam3TrackerModel",
        "Sam3TrackerConfig",
        PROMPTED
        | {
            "vision_config": of_type(
                "sam3_vision_model",
                backbone_config=SQUARE
                | {
                    "model_type": "sam3_vit_model",
                    "window_size": 2,
                    "global_attn_indexes": [1],
                    "pretrain_image_size": 64,
                },
                fpn_hidden_size=32,
                backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
            )
        },
        "1 of 4×4",
        {LOCAL: 1, "unknown token grid: it was lost at padding": 2, CROSS: 5},
        inputs=pointed_at,
        places=False,
    ),
    hf(
        "florence2.Florence2VisionBackbone",
        "Florence2VisionConfig",
        {
            "depths": [1, 1, 1, 1],
            "embed_dim": [16, 16, 32, 32],
            "num_heads": [2, 2, 2, 2],
            "num_groups": [2, 2, 2, 2],
            "window_size": 4,
            "projection_dim": 32,
            "drop_path_rate": 0.0,
        },
        "1 of 4×4",
        {LOCAL: 3, "the attention runs over channels, not over tokens": 4},
        size=(128, 128),
        places=False,
    ),
    hf(
        "MaskFormerModel",
        "MaskFormerConfig",
        {
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
            "backbone_config": swin(out_features=ALL_STAGES),
            "decoder_config": of_type("detr", **DETR | {"encoder_layers": 1, "decoder_layers": 2}),
        },
        "",
        {LEARNED_BIAS: 4, NO_MAP: 2, CROSS: 2},
        size=(64, 64),
    ),
    hf(
        "OneFormerModel",
        "OneFormerConfig",
        {
            "backbone_config": swin(out_features=ALL_STAGES),
            "conv_dim": 32,
            "mask_dim": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 64,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 2,
            "dim_feedforward": 64,
            "query_dec_layers": 1,
            "num_queries": 5,
            "text_encoder_width": 32,
            "text_encoder_num_layers": 1,
            "task_seq_len": 7,
        },
        "",
        {LEARNED_BIAS: 4, NO_MAP: 2, CROSS: 1, INPUT_BIAS: 1},
        inputs=lambda: ((images(1, 3, 64, 64), torch.arange(7)[None].float()), {}),
        places=False,
    ),
)
